"""Published data sets by name, read from the files of their authors; nothing is downloaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from online_aug.data.image_sets import FolderSet, ImageSet
from online_aug.data.published.readers import (
    CUB,
    DOGS,
    PETS,
    TINY_IMAGENET,
    WATERBIRDS,
    Reader,
    cifar10_splits,
    cifar100_splits,
    cub_splits,
    cub_waterbirds_splits,
    dogs_splits,
    imagenet_splits,
    pets_splits,
    tiny_imagenet_splits,
    torchvision_reader,
    waterbirds_splits,
)
from online_aug.data.published.segmentation import VOC, voc_splits
from online_aug.errors import UserError, one_line

SeededReader = Callable[[Path, int], Mapping[str, ImageSet]]
"""Reads the splits under `data.root`, drawn by `data.seed` if they are drawn."""


@dataclass(frozen=True)
class PublishedSet:
    """One published data set: the files it consists of and how to read them."""

    title: str
    """Name in error messages."""
    needs: tuple[str, ...]
    """Required files and folders (these end in a slash) under `data.root`."""
    read: Reader
    remark: str = "docs/DATA.md says what to get"
    """Advice if something is missing."""
    usual: str = "train"
    """Name of the training images that `read` returns."""
    others: Mapping[str, SeededReader] = field(default_factory=dict)
    """Readers for other training images, by the name that `data.train_split` takes."""

    def reader(self, train_split: str | None) -> SeededReader:
        """Return what reads the set with these training images; None are the usual ones.

        Raises:
            UserError: If the set has no such split.
        """
        if train_split in (None, self.usual):
            return lambda root, seed: self.read(root)
        if train_split in self.others:
            return self.others[train_split]
        known = ", ".join((self.usual, *self.others))
        raise UserError(
            f"data.train_split must be null or one that {self.title} has ({known}), "
            f"got {train_split}"
        )


def published_splits(
    name: str, root: Path, train_split: str | None = None, seed: int = 0
) -> Mapping[str, ImageSet]:
    """Read the splits that the authors of a data set define, by our names.

    Args:
        name: Key of `PUBLISHED`.
        root: Folder that holds the set's folder (`data.root`).
        train_split: Other training images than the usual ones (`data.train_split`).
        seed: Decides which they are if they are drawn (`data.seed`).

    Raises:
        UserError: If something is missing or is not as published; says what and where.
    """
    published, root = PUBLISHED[name], root.expanduser()
    read = published.reader(train_split)
    missing = [need for need in published.needs if not _is_there(root, need)]
    if missing:
        others = f" and {len(missing) - 1} more of them" if len(missing) > 1 else ""
        raise UserError(
            f"data.root must hold {published.title} with {', '.join(published.needs)}, "
            f"got {root} without {missing[0]}{others}; {published.remark}"
        )
    try:
        return read(root, seed)
    except UserError:
        raise
    except Exception as error:  # a wrong file can fail in any way
        raise UserError(
            f"data.root must hold {published.title} as it was published, got {root} where "
            f"it cannot be read: {one_line(error)}; {published.remark}"
        ) from error


def _flowers_trainval(root: Path, seed: int) -> Mapping[str, ImageSet]:
    found = _read_flowers(root)
    return {"train": _joined(found["train"], found["val"]), "test": found["test"]}


def _flowers_halves(root: Path, seed: int) -> Mapping[str, ImageSet]:
    """Split every class of Flowers into halves at random, as Diff-Mix's code does.

    One NumPy generator permutes the classes' images in their files' order, one class after another;
    the first half of each, rounded down, is trained on.
    """
    found = _read_flowers(root)
    whole = _joined(*found.values())
    order = np.argsort(np.asarray(whole.files), kind="stable")
    rng = np.random.default_rng(seed)
    halves: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for label in range(len(whole.class_names)):
        members = order[whole.labels[order] == label]
        members = members[rng.permutation(len(members))]
        halves["train"].append(members[: len(members) // 2])
        halves["test"].append(members[len(members) // 2 :])
    return {split: _part(whole, np.sort(np.concatenate(p))) for split, p in halves.items()}


def _part(whole: FolderSet, indices: np.ndarray) -> FolderSet:
    files = tuple(whole.files[index] for index in indices)
    return replace(whole, files=files, labels=whole.labels[indices])


def _joined(first: FolderSet, *others: FolderSet) -> FolderSet:
    """Return the images of several sets that have one folder and one list of classes."""
    sets = (first, *others)
    return replace(
        first,
        files=tuple(file for images in sets for file in images.files),
        labels=np.concatenate([images.labels for images in sets]),
    )


def _is_there(root: Path, need: str) -> bool:
    return (root / need).is_dir() if need.endswith("/") else (root / need).is_file()


def _within(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


_CUB = _within(
    CUB, "images/", "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"
)
_WATERBIRDS = _within(WATERBIRDS, "metadata.csv")
_AIRCRAFT = ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt", "images/")
_read_flowers = torchvision_reader("Flowers102", train="train", val="val", test="test")
_read_aircraft = torchvision_reader("FGVCAircraft", train="train", val="val", test="test")
_CARS = (
    ("cars_train/", "cars_test/", "cars_test_annos_withlabels.mat")
    + ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat")
)  # fmt: skip
_PETS = ("images/", "annotations/trainval.txt", "annotations/test.txt")
_VOC = (
    ("JPEGImages/", "SegmentationClass/", "SegmentationObject/")
    + ("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt")
)  # fmt: skip
_CIFAR10 = ("batches.meta.txt", *(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")
_PICKLED = "get the binary version; data.source=torch/{} reads the Python version, which is pickled"

PUBLISHED = {
    "cub200": PublishedSet("CUB-200-2011", _CUB, cub_splits),
    "cub200_waterbirds": PublishedSet(
        "CUB-200-2011 and Waterbirds", _CUB + _WATERBIRDS, cub_waterbirds_splits
    ),
    "pascal_voc": PublishedSet("Pascal VOC 2012", _within(VOC, *_VOC), voc_splits),
    "waterbirds": PublishedSet("Waterbirds", _WATERBIRDS, waterbirds_splits),
    "fgvc_aircraft": PublishedSet(
        "FGVC-Aircraft",
        _within("fgvc-aircraft-2013b/data", *_AIRCRAFT),
        torchvision_reader("FGVCAircraft", train="trainval", test="test"),
        usual="trainval",
        others={"train": lambda root, seed: _read_aircraft(root)},
    ),
    "stanford_cars": PublishedSet(
        "Stanford Cars",
        _within("stanford_cars", *_CARS),
        torchvision_reader("StanfordCars", train="train", test="test"),
    ),
    "stanford_dogs": PublishedSet(
        "Stanford Dogs", _within(DOGS, "Images/", "train_list.mat", "test_list.mat"), dogs_splits
    ),
    "oxford_flowers": PublishedSet(
        "Oxford Flowers",
        _within("flowers-102", "jpg/", "imagelabels.mat", "setid.mat"),
        _read_flowers,
        others={"trainval": _flowers_trainval, "half": _flowers_halves},
    ),
    "oxford_pets": PublishedSet("Oxford-IIIT Pets", _within(PETS, *_PETS), pets_splits),
    "food101": PublishedSet(
        "Food-101",
        _within("food-101", "images/", "meta/train.json", "meta/test.json"),
        torchvision_reader("Food101", train="train", test="test"),
    ),
    "cifar10": PublishedSet(
        "CIFAR-10",
        _within("cifar-10-batches-bin", *_CIFAR10),
        cifar10_splits,
        _PICKLED.format("cifar10"),
    ),
    "cifar100": PublishedSet(
        "CIFAR-100",
        _within("cifar-100-binary", "fine_label_names.txt", "train.bin", "test.bin"),
        cifar100_splits,
        _PICKLED.format("cifar100"),
    ),
    "tiny_imagenet": PublishedSet(
        "Tiny-ImageNet",
        _within(TINY_IMAGENET, "train/", "val/images/", "val/val_annotations.txt", "words.txt"),
        tiny_imagenet_splits,
    ),
    "imagenet": PublishedSet(
        "ImageNet in class folders", ("imagenet/train/", "imagenet/val/"), imagenet_splits
    ),
}
"""The published sets by the name that `data.source` takes."""
