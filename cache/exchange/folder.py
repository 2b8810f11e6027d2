"""An image folder: a folder a class, and `metadata.csv` with what made each image.

Hugging Face's `imagefolder` loader reads the table, torchvision's ImageFolder the folders.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cache.errors import CacheError
from cache.exchange.files import read_inside, walk_images
from cache.exchange.found import Found, Source, foreign
from cache.exchange.images import as_file, from_file
from cache.exchange.names import ClassNames
from cache.exchange.rows import COLUMNS, from_row, label_of, to_row
from cache.exchange.tables import TableWriter, heads, read_table
from cache.key import Scalar
from cache.record import Record

TABLE = "metadata.csv"
_UNLABELLED = "unlabelled"


class FolderWriter:
    """Writes `CLASS/KEY.png` (or `.jpg`, `.webp`) and the table; the class is the target's."""

    def __init__(self, folder: Path, classes: ClassNames) -> None:
        """Start in an empty folder."""
        self._folder, self._classes = folder, classes
        self._made: set[str] = set()
        self._table = TableWriter(folder / TABLE, ("file_name", *COLUMNS))

    def add(self, stored: Record) -> None:
        """Write one record.

        Raises:
            CacheError: If its class has no name.
        """
        name = self._class_folder(stored)
        suffix, content = as_file(stored)
        if name not in self._made:
            (self._folder / name).mkdir()
            self._made.add(name)
        file_name = f"{name}/{stored.key.hex()}{suffix}"
        (self._folder / file_name).write_bytes(content)
        self._table.add({"file_name": file_name, **to_row(stored)})

    def close(self) -> None:
        """Finish the table."""
        self._table.close()

    def _class_folder(self, stored: Record) -> str:
        label = label_of(stored.request, "target")
        label = label_of(stored.request, "source") if label is None else label
        return _UNLABELLED if label is None else self._classes.folder(label)


def read_export(source: Source) -> Iterator[Found]:
    """The images of a folder that was exported, under the requests they had."""
    for row in read_table(source.root / TABLE):
        name = row.get("file_name", "")
        yield name, partial(_load_exported, source.root, name, row)


def read_classes(source: Source) -> Iterator[Found]:
    """The images of class folders that anyone made; the first folder is the class."""
    classes = source.class_names(source.root)
    for name in walk_images(source.root):
        yield name, partial(_load_classified, source, classes, name)


def is_export(root: Path) -> bool:
    """Whether the folder's table has what records are made of."""
    return {"file_name", "key", "request"} <= heads(root / TABLE)


def _load_exported(root: Path, name: str, row: dict[str, str]) -> Record:
    return from_file(read_inside(root, name), from_row(row))


def _load_classified(source: Source, classes: ClassNames, name: str) -> Record:
    folder, _, rest = name.partition("/")
    if not rest:
        raise CacheError("image must lie in the folder of its class")
    content = read_inside(source.root, name)
    label = classes.label(folder)
    fields: dict[str, Scalar] = {
        "source_class": folder,
        "source_label": label,
        "target_class": folder,
        "target_label": label,
    }
    return from_file(content, foreign(source.method or "image_folder", content, fields))
