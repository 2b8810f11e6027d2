"""The metadata of records as a Parquet file, without images."""

from pathlib import Path
from typing import Any

from cache.errors import CacheError
from cache.exchange.names import ClassNames
from cache.exchange.rows import label_of, to_row
from cache.record import Record

_ROWS = 10_000
"""Of a row group: what is held in memory."""


class ParquetWriter:
    """Writes one row a record: what the other formats' tables have, sizes, codec and position."""

    def __init__(self, path: Path, classes: ClassNames) -> None:
        """Start the file.

        Raises:
            CacheError: If pyarrow is not installed.
        """
        self._arrow = check_pyarrow()
        self._schema = _schema(self._arrow)
        self._classes = classes
        self._file = self._arrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, stored: Record) -> None:
        """Write one record's row.

        Raises:
            CacheError: If its class has no name.
        """
        source, target = (label_of(stored.request, side) for side in ("source", "target"))
        text = to_row(stored)
        strength = stored.request.get("strength")
        self._rows.append(
            {
                **text,
                "created": stored.created,
                "position": stored.position,
                "source_label": source,
                "target_label": target,
                "source_class": None if source is None else self._classes.name(source),
                "target_class": None if target is None else self._classes.name(target),
                "strength": float(strength) if isinstance(strength, int | float) else None,
                "codec": stored.codec.name,
                "height": stored.height,
                "width": stored.width,
                "bytes": len(stored.image_bytes),
            }
        )
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the footer."""
        if self._rows:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def check_pyarrow() -> Any:
    """The pyarrow package.

    Raises:
        CacheError: If it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CacheError(
            "format parquet needs the package pyarrow; pip install 'online-aug[exchange]'"
        ) from error
    return pyarrow


def _schema(arrow: Any) -> Any:
    text, whole = arrow.string(), arrow.int64()
    names = {
        **dict.fromkeys(("key", "method", "prompt", "request", "scores", "codec"), text),
        **dict.fromkeys(("source_class", "target_class"), text),
        **dict.fromkeys(("position", "source_label", "target_label"), whole),
        **dict.fromkeys(("height", "width", "bytes"), whole),
        **dict.fromkeys(("created", "strength"), arrow.float64()),
    }
    return arrow.schema(list(names.items()))
