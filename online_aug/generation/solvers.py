"""Solvers of the reverse process as tables of coefficients, vectorised over slots.

Every solver here is linear in the latent, the network's output, the data predicted one step before
and fresh noise. So a row of coefficients describes a step, and one step of any mix of solvers,
strengths and positions is the same few multiplications over all slots. Time steps and noise levels
are those of diffusers' schedulers, with the settings of the model's directory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from jaxtyping import Float
from torch import Tensor

from online_aug.errors import UserError, one_line

Column: TypeAlias = Float[np.ndarray, " n"]


class Step(NamedTuple):
    """The columns of a solver's table, or one row of it for each slot, shaped to multiply latents.

    Before the step `latent = alpha * data + sigma * noise`. The network reads
    `input_latent * latent` at `timestep` and gives `output`; then

        data   = data_latent * latent + data_output * output
        latent = next_latent * latent + next_data * data + next_previous * previous
                 + next_noise * noise

    with `previous` the `data` of one step before and `noise` fresh, of unit variance.
    """

    alpha: Any
    sigma: Any
    timestep: Any
    input_latent: Any
    data_latent: Any
    data_output: Any
    next_latent: Any
    next_data: Any
    next_previous: Any = 0.0
    next_noise: Any = 0.0


def _ddim(scheduler: Any) -> Step:
    """Tabulate DDIM (arXiv:2010.02502), equation 12 with its sigma 0."""
    config, timesteps = scheduler.config, scheduler.timesteps.numpy()
    before = timesteps - config.num_train_timesteps // len(timesteps)
    kept = scheduler.alphas_cumprod.double().numpy()
    after = np.where(before >= 0, kept[before], float(scheduler.final_alpha_cumprod))
    alpha, sigma = np.sqrt(kept[timesteps]), np.sqrt(1 - kept[timesteps])
    shrink = np.sqrt(1 - after) / sigma
    return Step(
        alpha,
        sigma,
        timesteps,
        1.0,
        *_data_prediction(config.prediction_type, alpha, sigma),
        next_latent=shrink,
        next_data=np.sqrt(after) - shrink * alpha,
    )


def _euler(scheduler: Any) -> Step:
    """Tabulate Euler's method on the probability flow (arXiv:2206.00364, algorithm 2, no churn)."""
    levels = _levels(scheduler)
    return _euler_step(scheduler, levels[1:], np.zeros(len(levels) - 1))


def _euler_ancestral(scheduler: Any) -> Step:
    """Tabulate k-diffusion's ancestral step: Euler to below the next level, then noise up to it."""
    levels = _levels(scheduler)
    now, after = levels[:-1], levels[1:]
    up = after * np.sqrt(now**2 - after**2) / now
    return _euler_step(scheduler, np.sqrt(after**2 - up**2), up)


def _levels(scheduler: Any) -> Column:
    # With interpolation_type log_linear diffusers lists one more than it uses.
    levels: Column = scheduler.sigmas.double().numpy()[: len(scheduler.timesteps) + 1]
    return levels


def _euler_step(scheduler: Any, down: Column, up: Column) -> Step:
    # Latents here are data + sigma * noise; the network reads them scaled to unit variance.
    sigma = _levels(scheduler)[:-1]
    scale = 1 / np.sqrt(sigma**2 + 1)
    kind = scheduler.config.prediction_type
    data_latent, data_output = _data_prediction(kind, scale, sigma * scale)
    return Step(
        1.0,
        sigma,
        scheduler.timesteps.numpy(),
        input_latent=scale,
        data_latent=data_latent * scale,
        data_output=data_output,
        next_latent=down / sigma,
        next_data=1 - down / sigma,
        next_noise=up,
    )


def _dpm_solver(scheduler: Any) -> Step:
    """Tabulate DPM-Solver++ of one step or two (arXiv:2211.01095), the last step as in diffusers.

    Its stochastic form adds the noise that it takes away beyond the data's.
    """
    config, timesteps = scheduler.config, scheduler.timesteps.numpy()
    levels = scheduler.sigmas.double().numpy()
    alpha = 1 / np.sqrt(levels**2 + 1)
    sigma = levels * alpha
    width = np.diff(-np.log(levels))  # of the log signal-to-noise ratio
    is_random = config.algorithm_type == "sde-dpmsolver++"
    over = width * (2 if is_random else 1)
    pull = -alpha[1:] * np.expm1(-over)
    turn = np.zeros_like(pull)
    if config.solver_order == 2:
        bend = alpha[1:] - pull / over if config.solver_type == "heun" else 0.5 * pull
        turn[1:] = bend[1:] * width[1:] / width[:-1]
    is_short = config.lower_order_final and len(timesteps) < 15
    if config.euler_at_final or is_short or config.final_sigmas_type == "zero":
        turn[-1] = 0
    return Step(
        alpha[:-1],
        sigma[:-1],
        timesteps,
        1.0,
        *_data_prediction(config.prediction_type, alpha[:-1], sigma[:-1]),
        next_latent=sigma[1:] / sigma[:-1] * (np.exp(-width) if is_random else 1.0),
        next_data=pull + turn,
        next_previous=-turn,
        next_noise=sigma[1:] * np.sqrt(-np.expm1(-over)) if is_random else 0.0,
    )


def _lcm(scheduler: Any) -> Step:
    """Tabulate multistep consistency sampling of latents (arXiv:2310.04378), algorithm 3."""
    config, timesteps = scheduler.config, scheduler.timesteps.numpy()
    kept = scheduler.alphas_cumprod.double().numpy()[timesteps]
    alpha, sigma = np.sqrt(kept), np.sqrt(1 - kept)
    scaled = timesteps * config.timestep_scaling
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    after = np.append(alpha[1:], 1.0)  # the last step ends at the data
    return Step(
        alpha,
        sigma,
        timesteps,
        1.0,
        *_data_prediction(config.prediction_type, alpha, sigma),
        next_latent=after * skip,
        next_data=after * out,
        next_noise=np.append(sigma[1:], 0.0),
    )


def _data_prediction(kind: str, alpha: Column, sigma: Column) -> tuple[Column, Column]:
    # Weights of latent and output in the data, for latents `alpha * data + sigma * noise`. Velocity
    # is that of arXiv:2202.00512, appendix D.
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha
    if kind == "v_prediction":
        return alpha, -sigma
    if kind == "sample":
        return np.zeros_like(alpha), np.ones_like(alpha)
    raise UserError(
        f"generation.model must predict epsilon, v_prediction or sample, its scheduler says {kind}"
    )


class SolverKind(NamedTuple):
    """The definition of a solver, whatever the model."""

    schedule: Any
    """diffusers' scheduler class, which knows the time steps and noise levels."""
    settings: Mapping[str, Any]
    """Settings that override those of the model's directory."""
    table: Callable[[Any], Step]
    """Returns the table of a whole trajectory from a scheduler whose time steps are set."""


_UNCLIPPED = {"clip_sample": False, "thresholding": False}
_SECOND_ORDER = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
SOLVERS: Mapping[str, SolverKind] = {
    "dpmsolver++": SolverKind(
        DPMSolverMultistepScheduler, _SECOND_ORDER | {"thresholding": False}, _dpm_solver
    ),
    "ddim": SolverKind(DDIMScheduler, _UNCLIPPED, _ddim),
    "euler": SolverKind(EulerDiscreteScheduler, {}, _euler),
    "euler_ancestral": SolverKind(EulerAncestralDiscreteScheduler, {}, _euler_ancestral),
    "lcm": SolverKind(LCMScheduler, _UNCLIPPED, _lcm),
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
    rows: Float[Tensor, "n 10"]

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
        LCM: few steps of a fixed grid would leave few strengths to choose from.

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
            rows = self._rows(num_inference_steps)
            rows = _without_history(rows[len(rows) - int(num_inference_steps * strength) :])
        return self._checked(rows, rows[0][0], rows[0][1])

    def from_noise(self, num_inference_steps: int) -> Trajectory:
        """Return the trajectory from noise alone, all steps, as for InstructPix2Pix.

        Raises:
            UserError: If this solver has no such trajectory.
        """
        rows = _without_history(self._rows(num_inference_steps))
        return self._checked(rows, 0.0, float(self._scheduler.init_noise_sigma))

    def _rows(self, num_inference_steps: int, **settings: float) -> Float[np.ndarray, "n 10"]:
        try:
            self._scheduler.set_timesteps(num_inference_steps, **settings)
        except (TypeError, ValueError, RuntimeError) as error:  # too many steps for an LCM, ...
            raise UserError(f"generation.num_inference_steps does not fit: {error}") from None
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # `_checked` looks at the steps that are run
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
    previous: Float[Tensor, "s c h w"],
    noise: Float[Tensor, "s c h w"],
) -> tuple[Float[Tensor, "s c h w"], Float[Tensor, "s c h w"]]:
    """Advance each latent by its own row; return the latents and the data predicted on the way."""
    data = step.data_latent * latent + step.data_output * output
    ahead = step.next_latent * latent + step.next_data * data
    return ahead + step.next_previous * previous + step.next_noise * noise, data


def _without_history(rows: Float[np.ndarray, "n 10"]) -> Float[np.ndarray, "n 10"]:
    # For the first step that is run, the data predicted before it counts as the same: first order.
    first = Step(*rows[0])
    alone = first._replace(next_data=first.next_data + first.next_previous, next_previous=0.0)
    return np.concatenate([[alone], rows[1:]])
