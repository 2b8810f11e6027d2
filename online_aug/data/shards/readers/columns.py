"""The columns of images and labels in a table of Hugging Face's style, and the classes it names."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from online_aug.data.shards.content import ShardFile, import_arrow, shown
from online_aug.errors import UserError, escaped, one_line

_METADATA = b"huggingface"
_IMAGE_NAMES, _LABEL_NAMES = ("image", "img"), ("label", "labels")
"""Names that decide if several columns could be meant."""
BYTES, PATH = "bytes", "path"
"""Fields of an image."""


class Row(NamedTuple):
    """A row of a table."""

    image: Any
    """Buffer of the encoded image; None if it is missing."""
    path: str | None
    label: object


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    image: str
    is_struct: bool
    """Whether an image is a struct with its bytes and its path, or only its bytes."""
    label: str
    class_names: tuple[str, ...] | None
    """Names of the classes if the table says them."""

    @property
    def leaf(self) -> str:
        """Path of the column of bytes in a Parquet file."""
        return f"{self.image}.{BYTES}" if self.is_struct else self.image


def columns_of(schema: Any, path: Path, wanted: ShardFile) -> Columns:
    """Find the columns of a table.

    Args:
        schema: The table's schema, of pyarrow.
        path: The shard, for messages.
        wanted: Names the columns, or leaves them to be found.

    Raises:
        UserError: If there are none or several, or a named one does not exist.
    """
    features = _features(schema)
    fields = {field.name: field.type for field in schema}
    images = [name for name, kind in fields.items() if _holds_images(kind)]
    classes = {name: names for name, f in features.items() if (names := _names_in(f)) is not None}
    labels = list(classes) or [name for name in _LABEL_NAMES if name in fields]
    image = _chosen(wanted.image_key, "image", images, _IMAGE_NAMES, path, fields)
    if image not in images:
        raise UserError(
            f"data.image_key must be a column of encoded images, got {image} of {shown(path)}, "
            f"which holds {escaped(str(fields[image]))[:80]}"
        )
    label = _chosen(wanted.label_key, "label", labels, _LABEL_NAMES, path, fields)
    return Columns(image, _is_struct(fields[image]), label, classes.get(label))


def _chosen(
    named: str | None,
    kind: str,
    found: list[str],
    usual: tuple[str, ...],
    path: Path,
    fields: Mapping[str, Any],
) -> str:
    listed = escaped(", ".join(fields))[:300] or "none"
    if named is not None:
        if named not in fields:
            raise UserError(
                f"data.{kind}_key must be a column of {shown(path)}, got {named}; its columns are "
                f"{listed}"
            )
        return named
    if len(found) == 1:
        return found[0]
    likely = [name for name in usual if name in found]
    if likely:
        return likely[0]
    if found:
        raise UserError(
            f"data.{kind}_key must say which column of {shown(path)} is the {kind}, several may "
            f"be: {escaped(', '.join(found))[:300]}"
        )
    way_out = (
        "images are a struct of bytes and path, or bytes"
        if kind == "image"
        else "data.label_key may name one"
    )
    raise UserError(
        f"{shown(path)} must have a column of {kind}s, got the columns {listed}; {way_out}"
    )


def _features(schema: Any) -> Mapping[str, Any]:
    try:
        found = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
        features = found.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _names_in(feature: Any) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    is_class = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names or ()) if is_class and feature.get("_type") == "ClassLabel" else None


def _holds_images(kind: Any) -> bool:
    if not _is_struct(kind):
        return _is_binary(kind)
    place = kind.get_field_index(BYTES)
    return place >= 0 and _is_binary(kind.field(place).type)


def _is_struct(kind: Any) -> bool:
    return bool(import_arrow().types.is_struct(kind))


def _is_binary(kind: Any) -> bool:
    types = import_arrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def rows_of(table: Any, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a table or batch of pyarrow; images are parts of its memory, no copies."""
    labels = iter(table.column(columns.label).to_pylist())
    images = table.column(columns.image)
    for chunk in getattr(images, "chunks", [images]):
        values = chunk.field(BYTES) if columns.is_struct else chunk
        is_there = (values.is_valid().to_numpy(False)) & chunk.is_valid().to_numpy(False)
        has_path = columns.is_struct and chunk.type.get_field_index(PATH) >= 0
        paths = chunk.field(PATH).to_pylist() if has_path else [None] * len(chunk)
        for content, path, there in zip(_parts(values), paths, is_there, strict=True):
            yield Row(content if there else None, path, next(labels))


def _parts(values: Any) -> Iterator[Any]:
    """Yield the buffer of each value of an array of bytes."""
    _, offsets, content = values.buffers()
    width = np.int64 if import_arrow().types.is_large_binary(values.type) else np.int32
    first = values.offset
    ends = np.frombuffer(offsets, width)[first : first + len(values) + 1].tolist()
    empty = import_arrow().py_buffer(b"")
    for start, end in itertools.pairwise(ends):
        yield empty if content is None else content.slice(start, end - start)


def not_whole(path: Path, kind: str, error: Exception) -> Exception:
    """Return what to raise if pyarrow cannot read a file.

    Its own failures, unlike the system's, have no number.

    Args:
        path: The file.
        kind: Its kind, for the message.
        error: What pyarrow has raised.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return UserError(f"{shown(path)} must be a whole {kind} file: {one_line(error)}")
