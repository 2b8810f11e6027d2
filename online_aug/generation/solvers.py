"""Solvers of the reverse process, vectorised over slots.

A solver is a table of coefficients, so one step of any mix of solvers, strengths and positions is
the same few multiplications over all slots. Time steps and noise levels are diffusers' own:
spacing, offset and last level are those of the model's directory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from online_aug.errors import UserError
from online_aug.generation.solver_tables import SOLVERS, Step

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
    """The way of one image: its first noisy latent, then a row of `Step` for each network call."""

    start_image: float
    """Weight of the source's latents in the first noisy latent."""
    start_noise: float
    rows: Float[Tensor, "n 10"]

    def __len__(self) -> int:
        return len(self.rows)


class Solver:
    """A solver by our name on the noise schedule a model was trained with."""

    def __init__(self, name: str, trained_with: Mapping[str, Any]) -> None:
        self._name = name
        self._scheduler = sampling_scheduler(name, trained_with)

    def from_image(self, num_inference_steps: int, strength: float) -> Trajectory:
        """From a noised source through the last `int(num_inference_steps * strength)` steps.

        Args:
            num_inference_steps: Of the whole trajectory.
            strength: In (0, 1].

        Raises:
            UserError: If this solver has no such trajectory.
        """
        rows = self._rows(num_inference_steps)
        rows = _without_history(rows[len(rows) - int(num_inference_steps * strength) :])
        return self._checked(rows, rows[0][0], rows[0][1])

    def from_noise(self, num_inference_steps: int) -> Trajectory:
        """From noise alone through all steps, as text-to-image and InstructPix2Pix do.

        Raises:
            UserError: If this solver has no such trajectory.
        """
        rows = _without_history(self._rows(num_inference_steps))
        return self._checked(rows, 0.0, float(self._scheduler.init_noise_sigma))

    def _rows(self, num_inference_steps: int) -> Float[np.ndarray, "n 10"]:
        try:
            self._scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:  # such as more steps than an LCM was distilled for
            raise UserError(f"generation.num_inference_steps does not fit: {error}") from None
        with np.errstate(divide="ignore", invalid="ignore"):  # said below, of the executed steps
            columns = SOLVERS[self._name].table(self._scheduler)
        return np.stack(np.broadcast_arrays(*columns), axis=1)

    def _checked(
        self, rows: Float[np.ndarray, "n 10"], start_image: float, start_noise: float
    ) -> Trajectory:
        if not np.isfinite(rows).all():
            raise UserError(
                "generation.scheduler must be dpmsolver++, euler or euler_ancestral for a model "
                "that predicts noise and begins where there is nothing else (zero terminal SNR), "
                f"got {self._name!r}"
            )
        return Trajectory(float(start_image), float(start_noise), torch.from_numpy(rows).float())


def sampling_scheduler(name: str, trained_with: Mapping[str, Any]) -> Any:
    """diffusers' scheduler by our name, with the noise schedule the model was trained with.

    Latents have unit variance and leave [-1, 1], so a solver that clips its prediction there ruins
    the image; clipping is therefore off whatever the model's directory says.
    """
    kind, known = SOLVERS[name], dict(trained_with)
    # What the directory left to the default of its own class diffusers leaves to that of the new
    # class. That is right for how steps are spaced, and would change how noisy a time step is.
    unsaid = set(known.get("_use_default_values", ())) - _TRAINING
    return kind.schedule.from_config(known | {"_use_default_values": unsaid}, **kind.settings)


def advance(
    step: Step,
    latent: Float[Tensor, "s c h w"],
    output: Float[Tensor, "s c h w"],
    previous: Float[Tensor, "s c h w"],
    noise: Float[Tensor, "s c h w"],
) -> tuple[Float[Tensor, "s c h w"], Float[Tensor, "s c h w"]]:
    """Latents one step on, each by its own row, and the data predicted on the way."""
    data = step.data_latent * latent + step.data_output * output
    ahead = step.next_latent * latent + step.next_data * data
    return ahead + step.next_previous * previous + step.next_noise * noise, data


def _without_history(rows: Float[np.ndarray, "n 10"]) -> Float[np.ndarray, "n 10"]:
    """The first executed step takes the data predicted before it to be the same: first order."""
    first = Step(*rows[0])
    alone = first._replace(next_data=first.next_data + first.next_previous, next_previous=0.0)
    return np.concatenate([[alone], rows[1:]])
