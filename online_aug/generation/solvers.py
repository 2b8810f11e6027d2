"""Solvers of the reverse process, vectorised over slots.

A row of coefficients describes a step (`solver_tables`), so one step of any mix of solvers,
strengths and positions is the same few multiplications over all slots. Time steps and noise levels
are those of diffusers' schedulers, with the settings of the model's directory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from jaxtyping import Float
from torch import Tensor

from online_aug.errors import UserError, one_line
from online_aug.generation import solver_tables as tables
from online_aug.generation.solver_tables import REMEMBERED, Step


class SolverKind(NamedTuple):
    """The definition of a solver, whatever the model."""

    schedule: Any
    """diffusers' scheduler class, which knows the time steps and noise levels."""
    settings: Mapping[str, Any]
    """Settings that override those of the model's directory."""
    table: Callable[[Any, int], Step]
    """Returns the table of a whole trajectory from a scheduler whose time steps are set, and the
    number of the first step that is run."""


_UNCLIPPED = {"clip_sample": False, "thresholding": False}
_SECOND_ORDER = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
SOLVERS: Mapping[str, SolverKind] = {
    "dpmsolver++": SolverKind(
        DPMSolverMultistepScheduler, _SECOND_ORDER | {"thresholding": False}, tables.dpm_solver
    ),
    "ddim": SolverKind(DDIMScheduler, _UNCLIPPED, tables.ddim),
    "euler": SolverKind(EulerDiscreteScheduler, {}, tables.euler),
    "euler_ancestral": SolverKind(EulerAncestralDiscreteScheduler, {}, tables.euler_ancestral),
    "pndm": SolverKind(PNDMScheduler, {"skip_prk_steps": True}, tables.pndm),
    "lcm": SolverKind(LCMScheduler, _UNCLIPPED, tables.lcm),
}
"""Solvers by the names of `generation.scheduler`."""


_TRAINING = {
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
}


@dataclass(frozen=True)
class Trajectory:
    """The denoising of one image: its first noisy latent, then a row of `Step` per network call."""

    start_image: float
    """Weight of the source's latents in the first noisy latent."""
    start_noise: float
    rows: Float[Tensor, "n 13"]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.rows)


class Solver:
    """A solver on the noise schedule that a model was trained with."""

    def __init__(self, name: str, trained_with: Mapping[str, Any]) -> None:
        """Take a name of `SOLVERS`, and the settings of the model's own scheduler.

        Raises:
            UserError: If diffusers cannot use the settings.
        """
        self._name = name
        try:
            self._scheduler = sampling_scheduler(name, trained_with)
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise UserError(
                "generation.model must have a scheduler whose settings diffusers can use for "
                f"generation.scheduler {name}: {one_line(error)}"
            ) from error

    def from_image(self, num_inference_steps: int, strength: float) -> Trajectory:
        """Return the trajectory from a noised source: the last `int(steps * strength)` steps.

        With `lcm` as many begin at the strength itself, rounded up, as in diffusers' pipeline for
        LCM: few steps of a fixed grid would leave few strengths to choose from. With `pndm` there
        is one more, as its first step is taken twice.

        Args:
            num_inference_steps: Steps of the whole trajectory.
            strength: Fraction of it that is run, in (0, 1].

        Raises:
            UserError: If this solver has no such trajectory.
        """
        if self._name == "lcm":
            most = int(self._scheduler.config.original_inference_steps * strength)
            steps = min(math.ceil(num_inference_steps * strength), most)
            rows = self._rows(steps, strength=strength)
        else:
            first = num_inference_steps - int(num_inference_steps * strength)
            rows = self._rows(num_inference_steps, first)
        return self._checked(rows, rows[0][0], rows[0][1])

    def from_noise(self, num_inference_steps: int) -> Trajectory:
        """Return the trajectory from noise alone, all steps, as for InstructPix2Pix.

        Raises:
            UserError: If this solver has no such trajectory.
        """
        rows = self._rows(num_inference_steps)
        return self._checked(rows, 0.0, float(self._scheduler.init_noise_sigma))

    def _rows(
        self, num_inference_steps: int, first: int = 0, **settings: float
    ) -> Float[np.ndarray, "n 13"]:
        try:
            self._scheduler.set_timesteps(num_inference_steps, **settings)
        except (TypeError, ValueError, RuntimeError) as error:  # too many steps for an LCM, ...
            raise UserError(f"generation.num_inference_steps does not fit: {error}") from None
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # `_checked` looks at the steps that are run
            columns = SOLVERS[self._name].table(self._scheduler, first)
        return np.stack(np.broadcast_arrays(*columns), axis=1)[first:]

    def _checked(
        self, rows: Float[np.ndarray, "n 13"], start_image: float, start_noise: float
    ) -> Trajectory:
        if not np.isfinite(rows).all():
            raise UserError(
                "generation.scheduler must be dpmsolver++, euler or euler_ancestral for a model "
                "that predicts noise and begins where there is nothing else (zero terminal SNR), "
                f"got {self._name!r}"
            )
        return Trajectory(float(start_image), float(start_noise), torch.from_numpy(rows).float())


def sampling_scheduler(name: str, trained_with: Mapping[str, Any]) -> Any:
    """Return diffusers' scheduler for a name of `SOLVERS`, on the noise schedule of a model.

    Clipping is off whatever the model's directory says: latents have unit variance and leave
    [-1, 1], so a solver that clips its prediction there ruins the image.
    """
    kind, known = SOLVERS[name], dict(trained_with)
    # If the directory leaves a setting to the default of its class, diffusers takes the default of
    # the new class. That is right for the spacing of steps, but would change the noise levels.
    unsaid = set(known.get("_use_default_values", ())) - _TRAINING
    settings = dict(kind.settings)
    if known.get("_class_name") == kind.schedule.__name__:  # its own, as far as it says them
        settings |= {key: known[key] for key in _SECOND_ORDER if key in known.keys() & settings}
    return kind.schedule.from_config(known | {"_use_default_values": unsaid}, **settings)


def advance(
    step: Step,
    latent: Float[Tensor, "s c h w"],
    output: Float[Tensor, "s c h w"],
    previous: Float[Tensor, "m s c h w"],
    noise: Float[Tensor, "s c h w"],
) -> tuple[Float[Tensor, "s c h w"], Float[Tensor, "m s c h w"]]:
    """Advance each latent by its own row; return the latents and what is remembered now.

    Args:
        step: The row of each latent.
        latent: The latents before the step.
        output: What the network says of them.
        previous: Their `data` of the steps before, the last one first (`nothing_before`).
        noise: Fresh noise.
    """
    data = step.data_latent * latent + step.data_output * output
    ahead = step.next_latent * latent + step.next_data * data
    weights = (step.next_previous, step.next_second, step.next_third, step.next_fourth)
    for weight, before in zip(weights, previous, strict=True):
        ahead = ahead + weight * before
    return ahead + step.next_noise * noise, torch.cat([data.unsqueeze(0), previous[:-1]])


def nothing_before(latents: Float[Tensor, "*s c h w"]) -> Float[Tensor, "m *s c h w"]:
    """Return what is remembered before the first step of such latents."""
    return latents.new_zeros(REMEMBERED, *latents.shape)
