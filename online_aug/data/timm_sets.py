"""Data sets that `timm.data.create_dataset` opens: torchvision's and those of the Hugging Face hub.

Planning asks for any image at any time. The hub's sets lie in Arrow files, which are read in place.
A set that can only be read from front to back (a stream) is copied once into an image folder, with
its exact pixels (PNG) and timm's classes.
"""

import logging
import os
from collections.abc import Container, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cache import content_digest
from online_aug.console import Report
from online_aug.data.folders import (
    folder_splits,
    no_single_class,
    refuse_out_of_range,
    refuse_unknown_classes,
    written_once,
)
from online_aug.data.image_sets import FolderSet, ImageSet, pixel_digest
from online_aug.data.images import BadImageError, decode_image, to_rgb
from online_aug.data.settings import DataConfig
from online_aug.data.shards.content import ShardFile
from online_aug.data.shards.places import HFDS, WDS, Shards
from online_aug.data.shards.splits import splits_of
from online_aug.errors import UserError, one_line

_LOG = logging.getLogger(__name__)
_PREFIXES = ("torch", HFDS)
_STREAM_PREFIXES = ("hfids", "tfds")
_STREAM_FORMAT = 1
_FOLDERS = ("folder", "image_folder")
# If a torchvision set lacks a split, timm returns another one (the test split for `validation`), so
# only the splits that each set really has are asked for.
_TRAIN_TEST = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_TRAIN_VAL = ("imagenet", "places365", "inaturalist", "inat")


def is_timm_name(source: str) -> bool:
    """Return whether `source` has the form of a timm data set name, such as `torch/cifar10`."""
    prefix, _, name = source.partition("/")
    return bool(name) and prefix.lower() in (*_PREFIXES, *_STREAM_PREFIXES, WDS)


def timm_splits(data: DataConfig, cache: Path | None) -> dict[str, ImageSet]:
    """Open the labelled splits of a timm data set: `train`, and `val` and `test` if it has them.

    Nothing is downloaded for `torch/` names; `hfds/` names come from the hub or its cache. Streams
    (`tfds/`, `hfids/`) are copied into an image folder under `data.root` on first use.

    Args:
        data: Names the set and its folder.
        cache: Directory of the cache beside which an index is kept, as for shards.

    Raises:
        UserError: If the name is unknown, or files or a package are missing.
    """
    source, root = data.source, data.root
    prefix, _, name = source.partition("/")
    if prefix.lower() in _STREAM_PREFIXES:
        return dict(folder_splits(_copied(source, root)))
    if prefix.lower() == "torch" and name.lower() in _FOLDERS:
        return dict(folder_splits(root))
    train = _create(source, root, "train")
    others = _other_splits(source, train)
    opened = {split: _create(source, root, timm_split) for split, timm_split in others.items()}
    in_place = _arrow_splits({"train": train, **opened}, data, cache)
    if in_place is not None:
        return in_place
    class_names = tuple(_names_by_value(train, source).values())
    found: dict[str, ImageSet] = {
        "train": _image_set(train, TimmName(source, root, "train"), class_names)
    }
    for split, timm_split in others.items():
        dataset = opened[split]
        if set(_raw_labels(dataset, source)) == {-1}:
            _LOG.warning("the labels of %s (%s) are withheld: split not used", source, timm_split)
            continue
        found[split] = _image_set(dataset, TimmName(source, root, timm_split), class_names)
    return found


def _arrow_splits(
    opened: Mapping[str, Any], data: DataConfig, cache: Path | None
) -> dict[str, ImageSet] | None:
    """Return the splits of a set of the hub if its images lie in Arrow files, else None."""
    rows = {split: _arrow_files(dataset) for split, dataset in opened.items()}
    if not all(rows.values()):
        return None
    folder = Path(os.path.commonpath([path.parent for paths in rows.values() for path in paths]))
    files = {}
    for split, paths in rows.items():
        keys = opened[split].reader.image_key, opened[split].reader.label_key
        files[split] = [ShardFile(path.relative_to(folder).as_posix(), *keys) for path in paths]
    found = splits_of(Shards(folder, files), data, cache)
    counts = {
        split: sum(k.content.samples for k in images.shards) for split, images in found.items()
    }
    # A set that is a part of its files, or has their rows in another order, is read by datasets.
    return dict(found) if all(n == len(opened[s]) for s, n in counts.items()) else None


def _arrow_files(dataset: Any) -> list[Path]:
    """Return the files in which the images of a set lie; none if they are elsewhere."""
    reader: Any = getattr(dataset, "reader", None)
    table: Any = getattr(reader, "dataset", None)
    files = [Path(row["filename"]) for row in getattr(table, "cache_files", None) or ()]
    if not files or not len(dataset) or not (table[0][reader.image_key] or {}).get("bytes"):
        return []
    return files


@dataclass(frozen=True)
class TimmName:
    """The arguments with which timm opens one split."""

    source: str
    root: Path
    split: str


@dataclass(frozen=True, kw_only=True, eq=False)
class TimmSet:
    """A split of a timm data set that does not consist of files; each process opens it itself."""

    name: TimmName
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything except the opened data set."""
        return {key: value for key, value in self.__dict__.items() if key != "_dataset"}

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image.

        Raises:
            BadImageError: If it cannot be read; names the data set, the split and the index.
        """
        content = self._encoded(index)
        if content is not None:
            return decode_image(content, self._title(index))
        return to_rgb(self._dataset[index][0])

    def digest(self, index: int) -> str:
        """Return the digest of the encoded image if the set holds one, else of its pixels."""
        content = self._encoded(index)
        return pixel_digest(self.load(index)) if content is None else content_digest(content)

    @cached_property
    def _dataset(self) -> Any:
        return _create(self.name.source, self.name.root, self.name.split)

    def _encoded(self, index: int) -> bytes | None:
        # timm's own __getitem__ replaces a broken image and its label by the next one.
        reader = getattr(self._dataset, "reader", None)
        if reader is None:
            return None
        try:
            with reader[index][0] as stream:
                content: bytes = stream.read()
        except OSError as error:
            raise BadImageError(f"image {self._title(index)} cannot be read: {error}") from error
        return content

    def _title(self, index: int) -> str:
        return f"{index} of {self.name.source} ({self.name.split})"


def _create(source: str, root: Path, split: str) -> Any:
    try:
        from timm.data.dataset_factory import create_dataset

        return create_dataset(source, root=str(root), split=split)
    except Exception as error:  # each reader fails in its own way, often by an AssertionError
        raise UserError(
            f"data.source must be a data set timm can open, got {source} "
            f"(split {split}, data.root {root}): {one_line(error)}"
        ) from error


def _image_set(dataset: Any, name: TimmName, class_names: tuple[str, ...]) -> ImageSet:
    named = _names_by_value(dataset, name.source)
    values = _raw_labels(dataset, name.source)
    for value in set(values):
        refuse_out_of_range(value, named.keys(), f"{name.source} ({name.split})")
    titles = [named[value] for value in values]
    refuse_unknown_classes(sorted(set(titles) - set(class_names)), name.split, name.source)
    number = {title: k for k, title in enumerate(class_names)}
    labels = np.asarray([number[title] for title in titles], np.int64)
    files = _files(dataset)
    if files is None:
        return TimmSet(name=name, class_names=class_names, labels=labels)
    # The set is files only: our own decoder reads them, with all their modes and rotations.
    return FolderSet(root=Path(), files=files, class_names=class_names, labels=labels)


def _files(dataset: Any) -> tuple[str, ...] | None:
    if hasattr(dataset, "all_categories"):  # iNaturalist
        folders = [Path(dataset.root) / category for category in dataset.all_categories]
        return tuple(str(folders[category] / file) for category, file in dataset.index)
    pairs = getattr(dataset, "samples", None) or getattr(dataset, "imgs", None)
    return tuple(str(path) for path, _ in pairs) if pairs else None


def _other_splits(source: str, train: Any) -> dict[str, str]:
    name = source.partition("/")[2].lower()
    if name in _TRAIN_TEST:
        return {"test": "test"}
    if name in _TRAIN_VAL:
        return {"val": "validation"}
    return _val_and_test(train.reader.dataset.info.splits or {})


def _val_and_test(known: Container[str]) -> dict[str, str]:
    val = next((split for split in ("validation", "valid", "val") if split in known), None)
    found = {"val": val, "test": "test" if "test" in known else None}
    return {split: there for split, there in found.items() if there}


def _names_by_value(dataset: Any, source: str) -> dict[Hashable, str]:
    """Map the label values of this split to class names, in the order of the class numbers."""
    if hasattr(dataset, "all_categories"):
        return dict(enumerate(dataset.all_categories))
    holder = getattr(dataset, "reader", dataset)
    words = getattr(holder, "class_to_idx", None)
    if not words:
        values = set(_raw_labels(dataset, source))
        return {
            value: str(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v))
        }
    named: dict[Hashable, str] = {}
    for word, value in sorted(words.items(), key=lambda pair: pair[1]):
        named.setdefault(value, str(word))  # ImageNet: several words for one class
    return named


def _raw_labels(dataset: Any, source: str) -> list[Any]:
    if hasattr(dataset, "all_categories"):
        return [category for category, _ in dataset.index]
    reader = getattr(dataset, "reader", None)
    if reader is not None:
        labels = list(reader.dataset[reader.label_key])
        for label in labels:
            if not isinstance(label, (int, str)):
                raise no_single_class(label, source)
        return labels
    if getattr(dataset, "targets", None) is None:
        raise UserError(f"data.source must be a labelled classification set, got {source}")
    values = np.asarray(dataset.targets)
    # QMNIST has more columns beside the class, such as who wrote a digit.
    column: list[Any] = (values if values.ndim == 1 else values[:, 0]).tolist()
    return column


def _copied(source: str, root: Path) -> Path:
    train = _create(source, root, "train")
    builder = getattr(train.reader, "builder", None)  # tfds and hfids
    known = train.reader.info.get("splits", {}) if builder is None else builder.info.splits or {}
    others = _val_and_test(known).items()
    splits = {split: _create(source, root, timm_split) for split, timm_split in others}
    return write_stream(source, root, {"train": train, **splits})


def write_stream(source: str, root: Path, splits: Mapping[str, Any]) -> Path:
    """Return the folder under `root` with the images of `splits`, copied first if it is not there.

    Args:
        source: Name of the set, such as `wds/pets`.
        root: Where the copy goes (`data.root`).
        splits: timm's iterable data set of each split, by our names of the splits.

    Raises:
        UserError: If a label is not a class, or nothing can be read or written.
    """
    folder = root / source.replace("/", "_").lower()
    return written_once(folder, f"{source} {_STREAM_FORMAT}\n", partial(_copy, source, splits))


def _copy(source: str, splits: Mapping[str, Any], folder: Path, progress: Report) -> None:
    total, done = sum(map(len, splits.values())), 0
    for split, dataset in splits.items():
        before, known = done, set(_class_words(dataset).values())
        for image, label in _labelled(dataset, source):
            if known:
                refuse_out_of_range(label, known, f"{source} ({split})")
            place = folder / split / _class_folder(dataset, label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(to_rgb(image)).save(place / f"{done:08d}.png", compress_level=1)
            done += 1
            progress(done, total)
        if done == before:
            _LOG.warning("%s (%s) has no labelled image that can be read: not used", source, split)
        elif done - before < len(dataset):
            missing = len(dataset) - done + before
            _LOG.warning("%d images of %s (%s) could not be read", missing, source, split)
    if not (folder / "train").is_dir():
        raise UserError(f"data.source must hold labelled training images, got {source} without any")


def _labelled(dataset: Any, source: str) -> Iterator[tuple[Image.Image, int]]:
    items = iter(dataset)
    while True:
        try:
            image, label = next(items)
        except StopIteration:
            return
        except Exception as error:  # from one of a dozen decoders and file formats
            raise UserError(f"data.source {source} cannot be read: {one_line(error)}") from error
        try:
            number = int(label)
        except (TypeError, ValueError):
            raise no_single_class(label, source) from None
        if number >= 0:  # -1: withheld
            yield image, number


def _class_folder(dataset: Any, label: int) -> str:
    """Return a folder name that sorts by number and holds no path separators."""
    names = sorted(word for word, number in _class_words(dataset).items() if number == label)
    title = quote(names[0], safe=" ()&+,'") if names else ""
    return f"{label:05d} {title}".strip()


def _class_words(dataset: Any) -> dict[str, int]:
    words = getattr(dataset.reader, "class_to_idx", None) or {}
    return {str(word): number for word, number in words.items()}
