"""Strengths, checked against the steps of the solver."""

from collections.abc import Sequence
from typing import Protocol

USUAL_STEPS = 25
"""Denoising steps if neither the configuration nor the model says otherwise."""
LCM_STEPS = 50
"""Solver steps from which consistency models are distilled (arXiv:2310.04378)."""


class Denoising(Protocol):
    """The keys of `generation` that decide how many steps are run."""

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the whole trajectory; None leaves them to the model."""

    @property
    def scheduler(self) -> str:
        """Solver of the denoising steps."""


def check_strengths(strengths: Sequence[float], generation: Denoising) -> None:
    """Raise `ValueError` if a strength is so small that no denoising step would be run."""
    what, steps = "generation.num_inference_steps", steps_of(generation)
    if generation.scheduler == "lcm":
        what = "the steps of generation.scheduler lcm"
    for strength in strengths:
        if int(steps * strength) < 1:
            raise ValueError(
                f"method.strength * {what} must be at least 1, got {strength:g} * {steps}"
            )


def steps_of(generation: Denoising) -> int:
    """Return the number of strengths at which a trajectory can begin, evenly spaced.

    Consistency models begin at any of `LCM_STEPS`, however few steps follow. Steps that the model
    is yet to decide are never more than `USUAL_STEPS`.
    """
    if generation.scheduler == "lcm":
        return LCM_STEPS
    return generation.num_inference_steps or USUAL_STEPS
