"""Each solver as a table over the whole trajectory, from the noise levels of diffusers' scheduler.

Every solver here is linear in the latent, the network's output, the data predicted one step before
and fresh noise, so its coefficients say all of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from jaxtyping import Float

from online_aug.errors import UserError

Column: TypeAlias = Float[np.ndarray, " n"]


class Step(NamedTuple):
    """The columns of a table, or a row of it for each slot, shaped to multiply latents.

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
    """DDIM (arXiv:2010.02502), equation 12 with its sigma 0."""
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
    """Euler's method on the probability flow (arXiv:2206.00364), algorithm 2 without churn."""
    levels = scheduler.sigmas.double().numpy()
    return _euler_step(scheduler, levels[1:], np.zeros(len(levels) - 1))


def _euler_ancestral(scheduler: Any) -> Step:
    """Euler's method to below the next level, and noise up to it: k-diffusion's ancestral step."""
    levels = scheduler.sigmas.double().numpy()
    now, after = levels[:-1], levels[1:]
    up = after * np.sqrt(now**2 - after**2) / now
    return _euler_step(scheduler, np.sqrt(after**2 - up**2), up)


def _euler_step(scheduler: Any, down: Column, up: Column) -> Step:
    """Latents here are data + sigma * noise, not of unit variance as the network reads them."""
    sigma = scheduler.sigmas.double().numpy()[:-1]
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
    """DPM-Solver++(2M) (arXiv:2211.01095), algorithm 2, with diffusers' rule for the last step."""
    config, timesteps = scheduler.config, scheduler.timesteps.numpy()
    levels = scheduler.sigmas.double().numpy()
    alpha = 1 / np.sqrt(levels**2 + 1)
    sigma = levels * alpha
    width = np.diff(-np.log(levels))  # of the log signal-to-noise ratio
    pull = -alpha[1:] * np.expm1(-width)
    turn = np.zeros_like(pull)
    turn[1:] = 0.5 * pull[1:] * width[1:] / width[:-1]
    is_short = config.lower_order_final and len(timesteps) < 15
    if config.euler_at_final or is_short or config.final_sigmas_type == "zero":
        turn[-1] = 0
    return Step(
        alpha[:-1],
        sigma[:-1],
        timesteps,
        1.0,
        *_data_prediction(config.prediction_type, alpha[:-1], sigma[:-1]),
        next_latent=sigma[1:] / sigma[:-1],
        next_data=pull + turn,
        next_previous=-turn,
    )


def _lcm(scheduler: Any) -> Step:
    """Multistep consistency sampling of latents (arXiv:2310.04378), algorithm 3."""
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
    """Weights of latent and output in the data, for latents `alpha * data + sigma * noise`.

    Velocity is that of arXiv:2202.00512, appendix D.
    """
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
    """A solver before it meets a model."""

    schedule: Any
    """diffusers' class, which knows the time steps and noise levels."""
    settings: Mapping[str, Any]
    table: Callable[[Any], Step]
    """From that class, its time steps set, to the whole trajectory."""


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
"""By the names of `generation.scheduler`."""
