"""The keys of `data`: the real images, how they are split, and how they are transformed."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from online_aug.settings import (
    Count,
    Exponent,
    Fraction,
    NotNegative,
    Pixels,
    Positive,
    Section,
    Seed,
    Strength,
    Text,
)


class DataConfig(Section):
    """The real images."""

    source: str = "digits"
    """`digits`, `pocket_birds`, a published set such as `cub200` (docs/DATA.md), an image
    folder, shards (a folder of `.tar`, `.parquet` or `.arrow` files, or a pattern such as
    `shards/pets-{0000..0012}.tar`), or a timm data set such as `torch/cifar10` or `wds/pets`."""
    root: Path = Path("data")
    """Folder in which embedded sets are written, and published and timm sets are looked for."""
    image_key: Text | None = None
    """Shards: column of the images, or the ending of their names in a tar; null finds it."""
    label_key: Text | None = None
    """Shards: column of the labels, or their key in the `.json` members of a tar; null finds the
    column, and reads the `.cls` members of a tar."""
    class_names: Text | None = None
    """Shards: file with the name of a class on each line (or a JSON list), or a list of timm's such
    as `imagenet-22k`; null takes the names that the shards hold, or numbers."""
    image_size: Pixels = 64
    """Side of the square the classifier sees, px."""
    metaclass: str = ""
    """Word in the prompt that all classes share, such as `bird`."""
    examples_per_class: Count | None = None
    """Few-shot: keep this many training images of each class, drawn by `data.seed`."""
    imbalance_factor: Annotated[float, Field(gt=0, le=1), Exponent] | None = None
    """Long tail: size of the smallest class over the largest, (0, 1]; null cuts nothing."""
    imbalance_cut: Literal["ratio", "published"] = "ratio"
    """Long tail: rounded sizes that keep this ratio, or exactly those of Diff-Mix's code, whose
    smallest classes are smaller (CUB at 0.01: 1,242 images)."""
    many_few: tuple[Count, Count] = (100, 20)
    """Long tail: a class with more training images than the first counts as many-shot, with fewer
    than the second as few-shot; their accuracies are reported apart."""
    train_split: Literal["train", "trainval", "half"] | None = None
    """Training images of a published set that has several choices (docs/DATA.md), such as
    `trainval` of Aircraft or Diff-Mix's `half` of Flowers; null is the usual one."""
    val_fraction: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.1
    """Share of a single folder (or of train if there is no val) kept for validation; 0 keeps none:
    all are trained on and the last epoch counts."""
    test_fraction: Annotated[float, Field(gt=0, lt=1), Exponent] = 0.2
    """Share of a single folder kept for the test."""
    seed: Seed = 0
    """Seed of the split and of the few-shot and long-tail cuts."""
    epoch_repeats: Count = 1
    """Times that an epoch goes through the training set; larger for few-shot sets."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An unreadable file is refused with its name, or left out and counted."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Loader processes of each rank; null chooses by the number of cores."""
    resize: Literal["squash", "shortest", "longest"] = "squash"
    """Side that becomes `resize_px`: both, whatever their ratio; the shortest; or the longest, with
    black borders beside the other."""
    resize_px: Pixels | None = None
    """Side of images before they are cut to `image_size`, px; null is `image_size`."""
    crop: Literal["centre", "random", "resized"] = "centre"
    """Training transform: cut the middle, as in evaluation; cut anywhere; or cut a part of random
    area and resize it."""
    crop_pad_px: Annotated[int, Field(ge=0, le=4096)] = 0
    """Training transform: black border before a `random` cut, px."""
    crop_area: tuple[Strength, Strength] = (0.08, 1.0)
    """Training transform: smallest and largest part that a `resized` cut takes, (0, 1]."""
    shift: Fraction = 0.1
    """Training transform: largest shift, as a fraction of the side."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180), Exponent] = 10.0
    """Training transform: largest rotation, degrees."""
    scale: tuple[Positive, Positive] = (0.9, 1.1)
    """Training transform: smallest and largest zoom."""
    hflip: Fraction = 0.0
    """Training transform: probability of a horizontal flip."""
    auto_augment: Text | None = None
    """Training transform: timm's RandAugment, AutoAugment or AugMix, such as
    `rand-m9-mstd0.5-inc1`; null is off."""
    colour_jitter: NotNegative | None = None
    """Training transform: largest change of brightness, contrast and saturation; null is off."""
    erase: Fraction = 0.0
    """Training transform: probability that a rectangle is replaced by noise (timm)."""
