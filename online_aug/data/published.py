"""Published data sets by name, read from the files of their authors; nothing is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from online_aug.data.image_sets import ImageSet
from online_aug.data.published_readers import (
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
from online_aug.errors import UserError, one_line


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


def published_splits(name: str, root: Path) -> Mapping[str, ImageSet]:
    """Read the splits that the authors of a data set define, by our names.

    Args:
        name: Key of `PUBLISHED`.
        root: Folder that holds the set's folder (`data.root`).

    Raises:
        UserError: If something is missing or is not as published; says what and where.
    """
    published, root = PUBLISHED[name], root.expanduser()
    missing = [need for need in published.needs if not _is_there(root, need)]
    if missing:
        others = f" and {len(missing) - 1} more of them" if len(missing) > 1 else ""
        raise UserError(
            f"data.root must hold {published.title} with {', '.join(published.needs)}, "
            f"got {root} without {missing[0]}{others}; {published.remark}"
        )
    try:
        return published.read(root)
    except UserError:
        raise
    except Exception as error:  # a wrong file can fail in any way
        raise UserError(
            f"data.root must hold {published.title} as it was published, got {root} where "
            f"it cannot be read: {one_line(error)}; {published.remark}"
        ) from error


def _is_there(root: Path, need: str) -> bool:
    return (root / need).is_dir() if need.endswith("/") else (root / need).is_file()


def _within(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


_CUB = _within(
    CUB, "images/", "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"
)
_WATERBIRDS = _within(WATERBIRDS, "metadata.csv")
_AIRCRAFT = ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt", "images/")
_CARS = (
    ("cars_train/", "cars_test/", "cars_test_annos_withlabels.mat")
    + ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat")
)  # fmt: skip
_PETS = ("images/", "annotations/trainval.txt", "annotations/test.txt")
_CIFAR10 = ("batches.meta.txt", *(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")
_PICKLED = "get the binary version; data.source=torch/{} reads the Python version, which is pickled"

PUBLISHED = {
    "cub200": PublishedSet("CUB-200-2011", _CUB, cub_splits),
    "cub200_waterbirds": PublishedSet(
        "CUB-200-2011 and Waterbirds", _CUB + _WATERBIRDS, cub_waterbirds_splits
    ),
    "waterbirds": PublishedSet("Waterbirds", _WATERBIRDS, waterbirds_splits),
    "fgvc_aircraft": PublishedSet(
        "FGVC-Aircraft",
        _within("fgvc-aircraft-2013b/data", *_AIRCRAFT),
        torchvision_reader("FGVCAircraft", train="trainval", test="test"),
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
        torchvision_reader("Flowers102", train="train", val="val", test="test"),
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
