"""Readers of published data sets: from `data.root` to the splits that their authors define."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from online_aug.data.folders import read_splits
from online_aug.data.image_sets import FolderSet, Groups, ImageSet, pixel_digest
from online_aug.data.images import BadImageError
from online_aug.documents import open_regular, read_text

Reader = Callable[[Path], Mapping[str, ImageSet]]
"""Reads the splits under `data.root`; raises nearly anything if files are not as published."""

CUB = "CUB_200_2011"
DOGS = "stanford_dogs"
PETS = "oxford-iiit-pet"
TINY_IMAGENET = "tiny-imagenet-200"
WATERBIRDS = "waterbird_complete95_forest2water2"
_WATERBIRD_COLUMNS = ("img_filename", "y", "split", "place")
_CIFAR_SIDE_PX = 32
_MAX_LIST_BYTES = 2**28
_CIFAR_PIXEL_BYTES = 3 * _CIFAR_SIDE_PX**2
BIRDS, PLACES = ("landbird", "waterbird"), ("land", "water")


def torchvision_reader(name: str, **splits: str) -> Callable[[Path], Mapping[str, FolderSet]]:
    """Return a reader that uses a torchvision class; `splits` are its names of our splits."""

    def read(root: Path) -> Mapping[str, FolderSet]:
        from torchvision import datasets

        opened = {
            # It returns paths instead of images: our own decoder reads the pixels.
            ours: getattr(datasets, name)(root, split=theirs, loader=Path)
            for ours, theirs in splits.items()
        }
        return {
            split: listed(
                root,
                ((path.relative_to(root).as_posix(), int(label)) for path, label in images),
                [_with_spaces(str(title)) for title in images.classes],
            )
            for split, images in opened.items()
        }

    return read


def cub_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read CUB-200-2011 with the split of `train_test_split.txt`."""
    folder = root / CUB
    files, labels, in_train = (
        dict(table(folder / f"{name}.txt", 2))
        for name in ("images", "image_class_labels", "train_test_split")
    )
    if not files.keys() == labels.keys() == in_train.keys():
        raise ValueError(f"the lists in {folder} must name the same images, they do not")
    # 001.Black_footed_Albatross
    names = [_with_spaces(species.partition(".")[2]) for species in _species(root)]
    return {
        split: listed(
            folder / "images",
            ((files[k], int(labels[k]) - 1) for k, given in in_train.items() if given == flag),
            names,
        )
        for split, flag in {"train": "1", "test": "0"}.items()
    }


def waterbirds_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read Waterbirds: two classes, in groups by class and background."""
    splits = {}
    for split, rows in _waterbird_rows(root).items():
        pairs = ((row["img_filename"], int(row["y"])) for row in rows)
        splits[split] = listed(root / WATERBIRDS, pairs, BIRDS, _class_and_place(rows))
    return splits


def cub_waterbirds_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read CUB's 200 species to train on, and the same species in Waterbirds to test on."""
    number = {species: k for k, species in enumerate(_species(root))}
    rows = _waterbird_rows(root)["test"]
    pairs = [(row["img_filename"], number[row["img_filename"].split("/")[0]]) for row in rows]
    train = cub_splits(root)["train"]
    test = listed(root / WATERBIRDS, pairs, train.class_names, _class_and_place(rows))
    return {"train": train, "test": test}


def dogs_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read Stanford Dogs with the lists of its authors."""
    lists = {split: matlab(root / DOGS / f"{split}_list.mat") for split in ("train", "test")}
    pairs = {
        split: [
            (str(file), int(label) - 1)
            for file, label in zip(found["file_list"], found["labels"], strict=True)
        ]
        for split, found in lists.items()
    }
    breeds = {label: file.split("/")[0] for file, label in pairs["train"]}
    # n02085620-Chihuahua
    names = [_with_spaces(breeds[label].partition("-")[2]) for label in range(len(breeds))]
    folder = root / DOGS / "Images"
    return {split: listed(folder, images, names) for split, images in pairs.items()}


def pets_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read Oxford-IIIT Pets: 37 breeds."""
    lists = root / PETS / "annotations"
    rows = {
        split: table(lists / f"{name}.txt", 4)
        for split, name in {"train": "trainval", "test": "test"}.items()
    }
    breeds = {int(label) - 1: file.rpartition("_")[0] for file, label, *_ in rows["train"]}
    names = [_with_spaces(breeds[label]) for label in range(len(breeds))]
    return {
        split: listed(
            root / PETS / "images",
            ((f"{file}.jpg", int(label) - 1) for file, label, *_ in found),
            names,
        )
        for split, found in rows.items()
    }


def tiny_imagenet_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read Tiny-ImageNet; its validation images are the test split, as in papers."""
    folder = root / TINY_IMAGENET
    train = read_splits({"train": folder / "train"})["train"]
    number = {synset: k for k, synset in enumerate(train.class_names)}
    words = {synset: text.split(",")[0] for synset, text in table(folder / "words.txt", 2)}
    uses = Counter(words[synset] for synset in number)
    names = tuple(  # two classes may share a word: a crane is a bird and a machine
        word if uses[word] == 1 else f"{word} ({synset})"
        for synset, word in ((synset, words[synset]) for synset in number)
    )
    rows = table(folder / "val" / "val_annotations.txt", 6)
    pairs = ((file, number[synset]) for file, synset, *_ in rows)
    test = listed(folder / "val" / "images", pairs, names)
    return {"train": replace(train, class_names=names), "test": test}


def imagenet_splits(root: Path) -> Mapping[str, ImageSet]:
    """Read ImageNet in class folders; its validation images are the test split, as in papers."""
    return read_splits({"train": root / "imagenet/train", "test": root / "imagenet/val"})


def _species(root: Path) -> list[str]:
    return [species for _, species in table(root / CUB / "classes.txt", 2)]


def _with_spaces(name: str) -> str:
    return name.replace("_", " ")


def _waterbird_rows(root: Path) -> dict[str, list[dict[str, str]]]:
    path = root / WATERBIRDS / "metadata.csv"
    rows = list(csv.DictReader(io.StringIO(read_text(path, limit=_MAX_LIST_BYTES), newline="")))
    lacking = [column for column in _WATERBIRD_COLUMNS if not rows or column not in rows[0]]
    if lacking:
        raise ValueError(f"{path} must have the column {lacking[0]}")
    return {
        split: [row for row in rows if row["split"] == flag]
        for split, flag in {"train": "0", "val": "1", "test": "2"}.items()
    }


def _class_and_place(rows: Sequence[Mapping[str, str]]) -> Groups:
    names = tuple(f"{bird} on {place}" for bird in BIRDS for place in PLACES)
    numbers = np.asarray([2 * int(row["y"]) + int(row["place"]) for row in rows], np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(names):
        raise ValueError("y and place of metadata.csv must be 0 or 1")
    return Groups(names, numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class CifarSet:
    """A split of CIFAR in binary files, whose records are labels and then pixels by channel."""

    files: tuple[Path, ...]
    ends: tuple[int, ...]
    """Number of images up to the end of each file."""
    label_bytes: int
    """Labels of a record, one byte each; the last one is the class."""
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def load(self, index: int) -> UInt8[np.ndarray, "32 32 3"]:
        """Read one image.

        Raises:
            BadImageError: If the file cannot be read or has become shorter.
        """
        number = int(np.searchsorted(self.ends, index, side="right"))
        before = self.ends[number - 1] if number else 0
        path = self.files[number]
        try:
            with path.open("rb") as records:
                start = (index - before) * (self.label_bytes + _CIFAR_PIXEL_BYTES)
                records.seek(start + self.label_bytes)
                content = records.read(_CIFAR_PIXEL_BYTES)
        except OSError as error:
            raise BadImageError(f"image {index} of {path} cannot be read: {error}") from error
        if len(content) < _CIFAR_PIXEL_BYTES:
            raise BadImageError(f"image {index} of {path} cannot be read: the file ends before it")
        planes = np.frombuffer(content, np.uint8).reshape(3, _CIFAR_SIDE_PX, _CIFAR_SIDE_PX)
        return planes.transpose(1, 2, 0).copy()

    def digest(self, index: int) -> str:
        """Return the digest of the pixels."""
        return pixel_digest(self.load(index))


def cifar10_splits(root: Path) -> dict[str, ImageSet]:
    """Read CIFAR-10 in its binary version: five files to train on, one to test on."""
    folder = root / "cifar-10-batches-bin"
    names = _words(folder / "batches.meta.txt")
    batches = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    return {
        "train": _record_set(batches, 1, names),
        "test": _record_set([folder / "test_batch.bin"], 1, names),
    }


def cifar100_splits(root: Path) -> dict[str, ImageSet]:
    """Read CIFAR-100 in its binary version, with its hundred fine classes."""
    folder = root / "cifar-100-binary"
    names = _words(folder / "fine_label_names.txt")
    return {split: _record_set([folder / f"{split}.bin"], 2, names) for split in ("train", "test")}


def _words(path: Path) -> tuple[str, ...]:
    return tuple(read_text(path, limit=_MAX_LIST_BYTES).split())


def _record_set(files: Sequence[Path], label_bytes: int, class_names: tuple[str, ...]) -> CifarSet:
    labels = [_record_labels(path, label_bytes, len(class_names)) for path in files]
    return CifarSet(
        files=tuple(files),
        ends=tuple(accumulate(map(len, labels))),
        label_bytes=label_bytes,
        class_names=class_names,
        labels=np.concatenate(labels),
    )


def _record_labels(path: Path, label_bytes: int, num_classes: int) -> Int[np.ndarray, " n"]:
    size, length = path.stat().st_size, label_bytes + _CIFAR_PIXEL_BYTES
    if size == 0 or size % length:
        raise ValueError(f"{path} must hold whole records of {length} bytes, got {size} bytes")
    records = np.memmap(path, np.uint8, mode="r").reshape(-1, length)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= num_classes:
        raise ValueError(f"classes of {path} must be below {num_classes}, got {labels.max()}")
    return labels


def table(path: Path, columns: int) -> list[list[str]]:
    """Read a text file of columns separated by white space, which the last column may contain.

    Raises:
        ValueError: If a line has fewer columns.
    """
    rows = []
    for number, line in enumerate(read_text(path, limit=_MAX_LIST_BYTES).splitlines(), 1):
        row = line.split(maxsplit=columns - 1)
        if row and len(row) < columns:
            raise ValueError(f"{path} must have {columns} columns, got {line!r} in line {number}")
        if row:
            rows.append([*row[:-1], row[-1].strip()])
    return rows


def matlab(path: Path) -> dict[str, Any]:
    """Read the arrays of a MATLAB file (before 7.3) by name; no code in it is run."""
    from scipy.io import loadmat

    with open_regular(path) as file:
        arrays: dict[str, Any] = loadmat(file, squeeze_me=True)
    return arrays


def listed(
    root: Path,
    pairs: Iterable[tuple[str, int]],
    class_names: Sequence[str],
    groups: Groups | None = None,
) -> FolderSet:
    """Build the set of some listed images.

    Args:
        root: Folder that the files are relative to.
        pairs: File of each image, with `/`, and its label, counted from 0.
        class_names: Names of the classes by label.
        groups: Groups of the same images, in the same order.

    Raises:
        ValueError: If there is no image, a label has no name, or a file lies outside `root`.
    """
    files, labels = [], []
    for file, label in pairs:
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"class of {file} must be one of {len(class_names)}, counted from 0, got {label}"
            )
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ValueError(f"files must lie in {root}, got {file}")
        files.append(file)
        labels.append(label)
    if not files:
        raise ValueError(f"list of images in {root} must not be empty")
    return FolderSet(
        root=root,
        files=tuple(files),
        class_names=tuple(class_names),
        labels=np.asarray(labels, np.int64),
        groups=groups,
    )
