"""The steps of solvers as tables of coefficients.

Every solver here is linear in the latent, the network's output, what it remembers of the steps
before, and fresh noise. So a row of coefficients describes a step. Time steps and noise levels are
those of diffusers' schedulers.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from online_aug.errors import UserError

Column: TypeAlias = Float[np.ndarray, " n"]
REMEMBERED = 4
"""Steps whose `data` is remembered."""


class Step(NamedTuple):
    """The columns of a solver's table, or one row of it for each slot, shaped to multiply latents.

    Before the step `latent = alpha * data + sigma * noise`. The network reads
    `input_latent * latent` at `timestep` and gives `output`; then

        data   = data_latent * latent + data_output * output
        latent = next_latent * latent + next_data * data + next_previous * previous
                 + next_second * second + next_third * third + next_fourth * fourth
                 + next_noise * noise

    with `previous` to `fourth` the `data` of one to four steps before, and `noise` fresh, of unit
    variance. Solvers of the paper PNDM remember outputs: their `data` is the output itself.
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
    next_second: Any = 0.0
    next_third: Any = 0.0
    next_fourth: Any = 0.0
    next_noise: Any = 0.0


def ddim(scheduler: Any, first: int) -> Step:
    """Tabulate DDIM (arXiv:2010.02502), equation 12 with its sigma 0."""
    timesteps = scheduler.timesteps.numpy()
    kept = scheduler.alphas_cumprod.double().numpy()
    after = _kept_after(scheduler, timesteps - _stride(scheduler, len(timesteps)))
    alpha, sigma = np.sqrt(kept[timesteps]), np.sqrt(1 - kept[timesteps])
    shrink = np.sqrt(1 - after) / sigma
    return Step(
        alpha,
        sigma,
        timesteps,
        1.0,
        *_data_prediction(scheduler.config.prediction_type, alpha, sigma),
        next_latent=shrink,
        next_data=np.sqrt(after) - shrink * alpha,
    )


_PLMS = np.array(
    [
        [1, 0, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0, 0],
        [3 / 2, 0, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 0, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, 0, -9 / 24],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24, 0],
    ]
)
"""Weights of the output and of one to four before it, in the first steps and in all that follow.

The output of the second step is used in that step alone.
"""


def pndm(scheduler: Any, first: int) -> Step:
    """Tabulate PNDM without its Runge-Kutta steps (arXiv:2202.09778), as diffusers runs it.

    The second step takes the first one again, from the same latent, with the mean of the outputs at
    both of its ends. diffusers counts these two from the first step that is run, whatever the
    strength; so do we, as the published images are made so.
    """
    timesteps, config = scheduler.timesteps.numpy(), scheduler.config
    stride = _stride(scheduler, scheduler.num_inference_steps)
    kept = scheduler.alphas_cumprod.double().numpy()
    count = np.clip(np.arange(len(timesteps)) - first, 0, len(_PLMS) - 1)
    is_again = count == 1
    before = kept[timesteps + np.where(is_again, stride, 0)]
    after = _kept_after(scheduler, timesteps - np.where(is_again, 0, stride))
    of_latent, of_output = _transfer(config.prediction_type, before, after)
    weights = of_output[:, None] * _PLMS[count]
    again = np.flatnonzero(is_again)  # its latent is that of the step before, which is taken back
    of_latent[again] /= of_latent[again - 1]
    weights[again, 1] -= of_latent[again] * of_output[again - 1]
    return Step(
        np.sqrt(kept[timesteps]),
        np.sqrt(1 - kept[timesteps]),
        timesteps,
        1.0,
        data_latent=0.0,
        data_output=1.0,
        next_latent=of_latent,
        **dict(zip(_OUTPUTS, weights.T, strict=True)),
    )


_OUTPUTS = ("next_data", "next_previous", "next_second", "next_third", "next_fourth")


def _stride(scheduler: Any, steps: int) -> int:
    return int(scheduler.config.num_train_timesteps) // steps


def _kept_after(scheduler: Any, timesteps: Int[np.ndarray, " n"]) -> Column:
    # Squares of alpha; behind the last time step diffusers has one of its own.
    kept = scheduler.alphas_cumprod.double().numpy()
    return np.where(timesteps >= 0, kept[timesteps], float(scheduler.final_alpha_cumprod))


def _transfer(kind: str, before: Column, after: Column) -> tuple[Column, Column]:
    # Weights of latent and output between two squares of alpha: PNDM's equation 9.
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(
            "generation.model must predict epsilon or v_prediction for generation.scheduler pndm, "
            f"its scheduler says {kind}"
        )
    of_noise = np.sqrt(1 - after) - np.sqrt(after * (1 - before) / before)
    if kind == "epsilon":
        return np.sqrt(after / before), of_noise
    return np.sqrt(after / before) + of_noise * np.sqrt(1 - before), of_noise * np.sqrt(before)


def euler(scheduler: Any, first: int) -> Step:
    """Tabulate Euler's method on the probability flow (arXiv:2206.00364, algorithm 2, no churn)."""
    levels = _levels(scheduler)
    return _euler_step(scheduler, levels[1:], np.zeros(len(levels) - 1))


def euler_ancestral(scheduler: Any, first: int) -> Step:
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


def dpm_solver(scheduler: Any, first: int) -> Step:
    """Tabulate DPM-Solver++ of one to three steps (arXiv:2211.01095), the last as in diffusers.

    Its stochastic form adds the noise that it takes away beyond the data's.
    """
    config, timesteps = scheduler.config, scheduler.timesteps.numpy()
    levels = scheduler.sigmas.double().numpy()
    alpha = 1 / np.sqrt(levels**2 + 1)
    sigma = levels * alpha
    width = np.diff(-np.log(levels))  # of the log signal-to-noise ratio
    is_random = config.algorithm_type == "sde-dpmsolver++"
    over = width * (2 if is_random else 1)
    return Step(
        alpha[:-1],
        sigma[:-1],
        timesteps,
        1.0,
        *_data_prediction(config.prediction_type, alpha[:-1], sigma[:-1]),
        next_latent=sigma[1:] / sigma[:-1] * (np.exp(-width) if is_random else 1.0),
        **_data_weights(config, _orders(config, len(timesteps), first), alpha[1:], width, over),
        next_noise=sigma[1:] * np.sqrt(-np.expm1(-over)) if is_random else 0.0,
    )


def _orders(config: Any, steps: int, first: int) -> Int[np.ndarray, " n"]:
    # As many steps as were run before can be looked back at; at the end as diffusers does.
    orders = np.clip(np.arange(steps) - first + 1, 1, config.solver_order)
    is_short = config.lower_order_final and steps < 15
    if is_short:
        orders[-2:] = np.minimum(orders[-2:], 2)
    if config.euler_at_final or is_short or config.final_sigmas_type == "zero":
        orders[-1] = 1
    return np.asarray(orders)


def _data_weights(
    config: Any, orders: Int[np.ndarray, " n"], alpha: Column, width: Column, over: Column
) -> dict[str, Column]:
    # Weights of the data predicted in a step, in the one before and in the second before: of the
    # data itself, of its first difference, and of its second one, which third order has.
    orders = np.where(width == 0, 1, orders)  # nothing to look back from: diffusers makes NaN
    pull = -alpha * np.expm1(-over)
    curve = alpha - pull / over
    bend = np.where((orders == 2) & (config.solver_type == "midpoint"), 0.5 * pull, curve)
    sign = -1 if config.algorithm_type == "sde-dpmsolver++" else 1  # as diffusers has it
    bow = alpha * (0.5 * sign - (over + np.expm1(-over)) / over**2)
    near, far = _shifted(width, 1) / width, _shifted(width, 2) / width
    second = np.where(orders == 3, (bend * near + bow) / (near + far), 0.0)
    first = np.where(orders > 1, bend + second, 0.0)
    of_near, of_far = _over(first, near), _over(second, far)
    return {
        "next_data": pull + of_near,
        "next_previous": -of_near - of_far,
        "next_second": of_far,
    }


def _shifted(values: Column, by: int) -> Column:
    return np.concatenate([np.ones(by), values])[: len(values)]


def _over(values: Column, widths: Column) -> Column:
    # Where there is nothing to divide, a width may be 0 or not finite: the last step has no end.
    return np.where(values == 0, 0.0, values / widths)


def lcm(scheduler: Any, first: int) -> Step:
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
