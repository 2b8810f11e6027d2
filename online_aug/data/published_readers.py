"""Readers of published data sets: from `data.root` to the splits their authors define.

What data sets publish beside their images: lists of files, tables, MATLAB arrays.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
import numpy as np
from online_aug.data.folders import read_splits
from online_aug.data.image_sets import Groups, ImageSet
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from online_aug.data.image_sets import FolderSet, Groups

Reader = Callable[[Path], Mapping[str, ImageSet]]
"""Takes `data.root`; raises nearly anything where files are not as they were published."""

CUB = "CUB_200_2011"
DOGS = "stanford_dogs"
PETS = "oxford-iiit-pet"
TINY_IMAGENET = "tiny-imagenet-200"
WATERBIRDS = "waterbird_complete95_forest2water2"
WATERBIRD_COLUMNS = ("img_filename", "y", "split", "place")
BIRDS, PLACES = ("landbird", "waterbird"), ("land", "water")


def torchvision_reader(name: str, **splits: str) -> Reader:
    """A reader by torchvision's class of this name, with its names of our splits."""

    def read(root: Path) -> Mapping[str, ImageSet]:
        from torchvision import datasets

        opened = {
            # A path instead of an image: the pixels are read by our own decoder.
            ours: getattr(datasets, name)(root, split=theirs, loader=Path)
            for ours, theirs in splits.items()
        }
        return {
            split: listed(
                root,
                ((path.relative_to(root).as_posix(), int(label)) for path, label in images),
                [_spoken(str(title)) for title in images.classes],
            )
            for split, images in opened.items()
        }

    return read


def cub_splits(root: Path) -> Mapping[str, ImageSet]:
    """CUB-200-2011 with the split of `train_test_split.txt`."""
    folder = root / CUB
    files, labels, in_train = (
        dict(table(folder / f"{name}.txt", 2))
        for name in ("images", "image_class_labels", "train_test_split")
    )
    if not files.keys() == labels.keys() == in_train.keys():
        raise ValueError(f"the lists in {folder} must name the same images, they do not")
    # 001.Black_footed_Albatross
    names = [_spoken(species.partition(".")[2]) for species in _species(root)]
    return {
        split: listed(
            folder / "images",
            ((files[k], int(labels[k]) - 1) for k, given in in_train.items() if given == flag),
            names,
        )
        for split, flag in {"train": "1", "test": "0"}.items()
    }


def waterbirds_splits(root: Path) -> Mapping[str, ImageSet]:
    """Waterbirds: two classes, and the groups of class and place."""
    splits = {}
    for split, rows in _waterbird_rows(root).items():
        pairs = ((row["img_filename"], int(row["y"])) for row in rows)
        splits[split] = listed(root / WATERBIRDS, pairs, BIRDS, _class_and_place(rows))
    return splits


def cub_waterbirds_splits(root: Path) -> Mapping[str, ImageSet]:
    """Training on CUB's 200 species, the test on those species in Waterbirds, with its groups."""
    number = {species: k for k, species in enumerate(_species(root))}
    rows = _waterbird_rows(root)["test"]
    pairs = [(row["img_filename"], number[row["img_filename"].split("/")[0]]) for row in rows]
    train = cub_splits(root)["train"]
    test = listed(root / WATERBIRDS, pairs, train.class_names, _class_and_place(rows))
    return {"train": train, "test": test}


def dogs_splits(root: Path) -> Mapping[str, ImageSet]:
    """Stanford Dogs with the lists of its authors."""
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
    names = [_spoken(breeds[label].partition("-")[2]) for label in range(len(breeds))]
    folder = root / DOGS / "Images"
    return {split: listed(folder, images, names) for split, images in pairs.items()}


def pets_splits(root: Path) -> Mapping[str, ImageSet]:
    """Oxford-IIIT Pets: 37 breeds."""
    lists = root / PETS / "annotations"
    rows = {
        split: table(lists / f"{name}.txt", 4)
        for split, name in {"train": "trainval", "test": "test"}.items()
    }
    breeds = {int(label) - 1: file.rpartition("_")[0] for file, label, *_ in rows["train"]}
    names = [_spoken(breeds[label]) for label in range(len(breeds))]
    return {
        split: listed(
            root / PETS / "images",
            ((f"{file}.jpg", int(label) - 1) for file, label, *_ in found),
            names,
        )
        for split, found in rows.items()
    }


def tiny_imagenet_splits(root: Path) -> Mapping[str, ImageSet]:
    """Tiny-ImageNet; its validation images are the test, as papers report them."""
    folder = root / TINY_IMAGENET
    train = read_splits({"train": folder / "train"})["train"]
    number = {synset: k for k, synset in enumerate(train.class_names)}
    words = {synset: text.split(",")[0] for synset, text in table(folder / "words.txt", 2)}
    uses = Counter(words[synset] for synset in number)
    names = tuple(  # a crane is a bird and a machine
        word if uses[word] == 1 else f"{word} ({synset})"
        for synset, word in ((synset, words[synset]) for synset in number)
    )
    rows = table(folder / "val" / "val_annotations.txt", 6)
    pairs = ((file, number[synset]) for file, synset, *_ in rows)
    test = listed(folder / "val" / "images", pairs, names)
    return {"train": replace(train, class_names=names), "test": test}


def imagenet_splits(root: Path) -> Mapping[str, ImageSet]:
    """ImageNet in class folders; its validation images are the test, as papers report them."""
    return read_splits({"train": root / "imagenet/train", "test": root / "imagenet/val"})


def _species(root: Path) -> list[str]:
    return [species for _, species in table(root / CUB / "classes.txt", 2)]


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _waterbird_rows(root: Path) -> dict[str, list[dict[str, str]]]:
    path = root / WATERBIRDS / "metadata.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lacking = [column for column in WATERBIRD_COLUMNS if not rows or column not in rows[0]]
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


def table(path: Path, columns: int) -> list[list[str]]:
    """The lines of a text file, divided at white space; the last column keeps its own.

    Raises:
        ValueError: If a line has fewer columns.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = line.split(maxsplit=columns - 1)
        if row and len(row) < columns:
            raise ValueError(f"{path} must have {columns} columns, got {line!r} in line {number}")
        if row:
            rows.append([*row[:-1], row[-1].strip()])
    return rows


def matlab(path: Path) -> dict[str, Any]:
    """The arrays of a MATLAB file (before 7.3) by name; only data, nothing in it is run."""
    from scipy.io import loadmat

    arrays: dict[str, Any] = loadmat(path, squeeze_me=True)
    return arrays


def listed(
    root: Path,
    pairs: Iterable[tuple[str, int]],
    class_names: Sequence[str],
    groups: Groups | None = None,
) -> FolderSet:
    """The images of a list.

    Args:
        root: Folder that the names are relative to.
        pairs: Name of each file, with `/`, and its class, counted from 0.
        class_names: Names by class.
        groups: Those of the same images, in the same order.

    Raises:
        ValueError: If there is no image, a class has no name, or a file lies outside of `root`.
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
