"""The part of the configuration that says in which order images are made."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from online_aug.config_types import Count, Section


class ScheduleConfig(Section):
    """What is generated first."""

    priority: Literal["uniform", "long_tail", "hard"] = "uniform"
    """`uniform`: the order of the plan; `long_tail`: target classes in proportion to 1 / (n + 1) of
    their n training images; `hard`: in proportion to the classifier's running loss on them."""
    image_weights: Path | None = None
    """With `uniform`: JSON file of training images (their files as the data set lists them, or
    digests) and numbers above 0: images are varied in proportion to theirs; others count 1."""
    refresh_steps: Count = 100
    """`hard`: optimizer steps between two looks at the losses."""
    stripe: Annotated[int, Field(ge=0)] = 0
    """Part of the plan that this machine begins with, from 0, where several make one plan."""
    stripes: Count = 1
    """Machines that make one plan, each its part; the keys say which request is in which."""
    helps: bool = True
    """After its own part a machine goes on with the rest; false ends there, for caches that are to
    be merged."""

    @model_validator(mode="after")
    def _one_kind_of_weights(self) -> "ScheduleConfig":
        if self.image_weights is not None and self.priority != "uniform":
            raise ValueError(
                "schedule.priority must be uniform where schedule.image_weights is given, got "
                f"{self.priority}"
            )
        return self

    @model_validator(mode="after")
    def _stripe_is_one_of_them(self) -> "ScheduleConfig":
        if self.stripe >= self.stripes:
            raise ValueError(
                f"schedule.stripe must be below schedule.stripes, got {self.stripe} of "
                f"{self.stripes}"
            )
        return self
