"""Data sets by name, read from the files that their authors distribute; nothing is downloaded.

CIFAR-10 and CIFAR-100 in their binary version: records of labels and pixels, nothing to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
import numpy as np
from jaxtyping import Int, UInt8
from online_aug.data.image_sets import ImageSet, pixel_digest
from online_aug.data.images import BadImageError
from collections.abc import Mapping
from online_aug.data.image_sets import ImageSet
from online_aug.data.published_readers import CUB, DOGS, PETS, TINY_IMAGENET, WATERBIRDS, Reader, cub_splits, cub_waterbirds_splits, dogs_splits, imagenet_splits, pets_splits, tiny_imagenet_splits, torchvision_reader, waterbirds_splits
from online_aug.errors import UserError, one_line

SIDE_PX = 32
PIXEL_BYTES = 3 * SIDE_PX**2


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordSet:
    """One split in files of records: labels, the last of which counts, then red, green, blue."""

    files: tuple[Path, ...]
    ends: tuple[int, ...]
    """Images up to the end of each file."""
    label_bytes: int
    """Labels of a record, a byte each."""
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def load(self, index: int) -> UInt8[np.ndarray, "32 32 3"]:
        """Pixels of one image.

        Raises:
            BadImageError: If the file cannot be read or has become shorter.
        """
        number = int(np.searchsorted(self.ends, index, side="right"))
        before = self.ends[number - 1] if number else 0
        path = self.files[number]
        try:
            with path.open("rb") as records:
                place = (index - before) * (self.label_bytes + PIXEL_BYTES)
                records.seek(place + self.label_bytes)
                content = records.read(PIXEL_BYTES)
        except OSError as error:
            raise BadImageError(f"image {index} of {path} cannot be read: {error}") from error
        if len(content) < PIXEL_BYTES:
            raise BadImageError(f"image {index} of {path} cannot be read: the file ends before it")
        planes = np.frombuffer(content, np.uint8).reshape(3, SIDE_PX, SIDE_PX)
        return planes.transpose(1, 2, 0).copy()

    def digest(self, index: int) -> str:
        """Digest of the pixels, as of a set in memory."""
        return pixel_digest(self.load(index))


def cifar10_splits(root: Path) -> dict[str, ImageSet]:
    """CIFAR-10: five files to train on, one for the test."""
    folder = root / "cifar-10-batches-bin"
    names = _names(folder / "batches.meta.txt")
    batches = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    return {
        "train": _records(batches, 1, names),
        "test": _records([folder / "test_batch.bin"], 1, names),
    }


def cifar100_splits(root: Path) -> dict[str, ImageSet]:
    """CIFAR-100 with its hundred fine classes; the twenty coarse ones are passed over."""
    folder = root / "cifar-100-binary"
    names = _names(folder / "fine_label_names.txt")
    return {split: _records([folder / f"{split}.bin"], 2, names) for split in ("train", "test")}


def _names(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").split())


def _records(files: Sequence[Path], label_bytes: int, class_names: tuple[str, ...]) -> RecordSet:
    labels = [_labels(path, label_bytes, len(class_names)) for path in files]
    return RecordSet(
        files=tuple(files),
        ends=tuple(accumulate(map(len, labels))),
        label_bytes=label_bytes,
        class_names=class_names,
        labels=np.concatenate(labels),
    )


def _labels(path: Path, label_bytes: int, num_classes: int) -> Int[np.ndarray, " n"]:
    size, length = path.stat().st_size, label_bytes + PIXEL_BYTES
    if size == 0 or size % length:
        raise ValueError(f"{path} must hold whole records of {length} bytes, got {size} bytes")
    records = np.memmap(path, np.uint8, mode="r").reshape(-1, length)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= num_classes:
        raise ValueError(f"classes of {path} must be below {num_classes}, got {labels.max()}")
    return labels


@dataclass(frozen=True)
class PublishedSet:
    """One published data set."""

    title: str
    needs: tuple[str, ...]
    """Files and folders (with a slash at the end) under `data.root` without which nothing works."""
    read: Reader
    remark: str = "docs/DATA.md says what to get"
    """What to do where something is missing."""


def published_splits(name: str, root: Path) -> Mapping[str, ImageSet]:
    """The splits that the authors of a data set define, by our names.

    Args:
        name: A key of `PUBLISHED`.
        root: Folder that holds the set's folder (`data.root`).

    Raises:
        UserError: If something is missing or is not as it was published; says what and where.
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
    except Exception as error:  # a file that is not what its name says can fail in any way
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
"""By the name that `data.source` takes."""
