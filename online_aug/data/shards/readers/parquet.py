"""Parquet shards: images at their places in pages, labels and classes as `datasets` writes them."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from online_aug.data.shards.content import (
    BLOCK,
    WITHOUT_IMAGE,
    Content,
    ContentBuilder,
    ShardFile,
    import_arrow,
    shown,
)
from online_aug.data.shards.readers.columns import Columns, Row, columns_of, not_whole, rows_of
from online_aug.data.shards.readers.pages import Places, UnknownPageError
from online_aug.errors import UserError, escaped

_CODECS = {"uncompressed": "", "lz4": "lz4_raw"}
"""Codecs that Parquet calls by another name than pyarrow."""
_JPEG = b"\xff\xd8"


def read_parquet(path: Path, wanted: ShardFile) -> Content:
    """Read a Parquet file once, a row group at a time.

    Raises:
        UserError: If it is damaged, has no column of images or of labels, or is stored in a way
            that allows no reading at a place.
        OSError: If it cannot be read.
    """
    arrow = import_arrow()
    try:
        with arrow.parquet.ParquetFile(path) as table:
            return _read(path, table, columns_of(table.schema_arrow, path, wanted))
    except (arrow.ArrowException, OSError) as error:
        raise not_whole(path, "Parquet", error) from None
    except UnknownPageError as error:
        raise UserError(
            f"images of {shown(path)} must be stored plain or by a dictionary, got {error}: write "
            "it again by pyarrow or datasets"
        ) from None


def _read(path: Path, table: Any, columns: Columns) -> Content:
    found, number = ContentBuilder(path), 0
    metadata = table.metadata
    if not metadata.num_rows:
        return found.finished()
    leaf = _leaf(metadata, columns)
    codec = metadata.row_group(0).column(leaf).compression.lower()
    places = Places(_CODECS.get(codec, codec))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(leaf)
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
                start = min(start, chunk.dictionary_page_offset)
            places.read_chunk(
                content,
                start,
                chunk.total_compressed_size,
                metadata.schema.column(leaf).max_definition_level,
            )
            rows = list(
                rows_of(table.read_row_group(group, [columns.image, columns.label]), columns)
            )
            for row, place in _with_places(path, rows, places):
                _add(path, found, number, row, place)
                number += 1
    return found.finished(np.array(places.blocks, BLOCK), places.codec, columns.class_names)


def _add(
    path: Path, found: ContentBuilder, number: int, row: Row, place: tuple[int, int] | None
) -> None:
    if row.image is not None and place is not None:
        content = row.image.to_pybytes()
        found.add(row_name(number, row.path, content), place[0], content, row.label)
    elif row.path is None:
        found.leave_out(WITHOUT_IMAGE)
    else:
        raise only_a_path(path, number, row.path)


def _leaf(metadata: Any, columns: Columns) -> int:
    schema = metadata.schema
    paths = [schema.column(number).path for number in range(metadata.num_columns)]
    return paths.index(columns.leaf)


def _with_places(
    path: Path, rows: list[Row], places: Places
) -> Iterator[tuple[Row, tuple[int, int] | None]]:
    """Yield the rows of a row group with the place of each image.

    Writers begin with a dictionary and go over to plain values when it is full, so these are the
    last ones. What is found there is compared with what pyarrow has read.
    """
    by_dictionary = sum(row.image is not None for row in rows) - len(places.values)
    plain, done = iter(places.values), 0
    for row in rows:
        if row.image is None:
            yield row, None
            continue
        done += 1
        is_plain = done > by_dictionary
        place = next(plain) if is_plain else places.dictionary.get(row.image.to_pybytes())
        if place is None or place[1] != row.image.size:
            raise UnknownPageError("an unknown order of pages")
        yield row, place


def row_name(number: int, path: str | None, image: bytes) -> str:
    """Return the name of an image: that of its file, or the number of its row."""
    if path:
        return f"{number}/{escaped(path.rpartition('/')[2])}"
    return f"{number}.jpg" if image[:2] == _JPEG else str(number)


def only_a_path(path: Path, number: int, name: str) -> UserError:
    """Return the error for an image that is named and not there."""
    return UserError(
        f"every image must be in its shard, row {number} of {shown(path)} only names "
        f"{escaped(name)[:80]}: embed the images, as push_to_hub of datasets does"
    )
