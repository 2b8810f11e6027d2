"""The part of the configuration that says what the real images are."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from online_aug.config_types import Count, Exponent, Fraction, Pixels, Positive, Section, Seed


class DataConfig(Section):
    """The real images."""

    source: str = "digits"
    """`digits`, `pocket_birds`, a published set such as `cub200` (docs/DATA.md), an image
    folder, or a timm data set such as `torch/cifar10`."""
    root: Path = Path("data")
    """Folder in which embedded sets are written, and published and timm sets are looked for."""
    image_size: Pixels = 64
    """Side of the square the classifier sees, px."""
    metaclass: str = ""
    """Word for all classes together in the prompt, such as `bird`."""
    examples_per_class: Count | None = None
    """Few-shot: keep this many training images of each class, drawn by `data.seed`."""
    imbalance_factor: Annotated[float, Field(gt=0, le=1), Exponent] | None = None
    """Long tail: size of the smallest class over the largest, (0, 1]; Diff-Mix's formula."""
    many_few: tuple[Count, Count] = (100, 20)
    """Long tail: a class with more training images than the first has many, with fewer than the
    second few; their accuracy is told apart."""
    val_fraction: Annotated[float, Field(gt=0, lt=1), Exponent] = 0.1
    """Share of a single folder (or of train where there is no val) kept for validation."""
    test_fraction: Annotated[float, Field(gt=0, lt=1), Exponent] = 0.2
    """Share of a single folder kept for the test."""
    seed: Seed = 0
    """Seed of the split and of the few-shot and long-tail cuts."""
    epoch_repeats: Count = 1
    """How often an epoch walks through the training set; larger for few-shot sets."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An unreadable file ends the start with its name, or is left out and counted."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Loader processes a rank; null chooses from the cores."""
    shift: Fraction = 0.1
    """Training transform: largest shift, as a fraction of the side."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180), Exponent] = 10.0
    """Training transform: largest rotation, degrees."""
    scale: tuple[Positive, Positive] = (0.9, 1.1)
    """Training transform: smallest and largest zoom."""
    hflip: Fraction = 0.0
    """Training transform: probability of a horizontal flip."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "DataConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"data.scale must be smallest then largest, got {list(self.scale)}")
        if self.many_few[0] < self.many_few[1]:
            raise ValueError(f"data.many_few must be many then few, got {list(self.many_few)}")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                "data.val_fraction + data.test_fraction must be below 1, got "
                f"{self.val_fraction} + {self.test_fraction}: nothing is left to train on"
            )
        return self
