"""CIFAR-10 and CIFAR-100 in their binary version: records of labels and pixels, nothing to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from online_aug.dataloader.image_sets import ImageSet, pixel_digest
from online_aug.dataloader.images import BadImageError

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
