"""Arrow files, as `datasets` keeps them: images lie in the file as they are, at a known place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from online_aug.data.shards.content import (
    WITHOUT_IMAGE,
    Content,
    ContentBuilder,
    ShardFile,
    import_arrow,
    shown,
)
from online_aug.data.shards.readers.columns import columns_of, not_whole, rows_of
from online_aug.data.shards.readers.parquet import only_a_path, row_name
from online_aug.errors import UserError


def read_arrow(path: Path, wanted: ShardFile) -> Content:
    """Read an Arrow file once, mapped into memory.

    Raises:
        UserError: If it is damaged, or has no column of images or of labels.
        OSError: If it cannot be read.
    """
    arrow = import_arrow()
    try:
        with arrow.memory_map(str(path)) as file:
            whole = file.read_buffer()
        return _read(path, wanted, whole)
    except (arrow.ArrowException, OSError) as error:
        raise not_whole(path, "Arrow", error) from None


def _read(path: Path, wanted: ShardFile, whole: Any) -> Content:
    found, number = ContentBuilder(path), 0
    batches = _batches(whole)
    columns = columns_of(batches[0].schema, path, wanted) if batches else None
    for batch in batches:
        assert columns is not None
        for row in rows_of(batch, columns):
            if row.image is not None:
                content = row.image.to_pybytes()
                name = row_name(number, row.path, content)
                found.add(name, _place(path, row.image, whole), content, row.label)
            elif row.path is None:
                found.leave_out(WITHOUT_IMAGE)
            else:
                raise only_a_path(path, number, row.path)
            number += 1
    return found.finished(class_names=columns.class_names if columns else None)


def _place(path: Path, image: Any, whole: Any) -> int:
    place: int = image.address - whole.address
    if not 0 <= place <= whole.size - image.size:
        raise UserError(
            f"{shown(path)} must hold its images unpacked, got compressed buffers: save it again "
            "by save_to_disk of datasets"
        )
    return place


def _batches(whole: Any) -> list[Any]:
    arrow = import_arrow()
    try:
        reader = arrow.ipc.open_stream(whole)
    except arrow.ArrowInvalid:
        reader = arrow.ipc.open_file(whole)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    return list(_streamed(reader))


def _streamed(reader: Any) -> Iterator[Any]:
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return
