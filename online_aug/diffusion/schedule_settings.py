"""The settings of a model's own scheduler: honoured, without effect, or refused by name.

Our solvers read time steps and noise levels off diffusers' schedulers, so settings that decide
those are honoured. What a scheduler would do to each prediction is not: such a setting is refused
here, before anything starts. tests/diffusion/test_schedule_settings.py has every setting of every
scheduler of diffusers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from online_aug.diffusion.directory import scheduler_settings
from online_aug.errors import UserError

SCHEDULERS = frozenset(
    {
        *("DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler"),
        *("DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler"),
        *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
        *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "EulerDiscreteScheduler"),
        *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
        *("KDPM2AncestralDiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler"),
        *("PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler"),
    }
)
"""Classes of diffusers whose settings describe diffusion in discrete steps with betas."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_CLASS_OF = {
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
}
_MAX_TRAIN_TIMESTEPS = 100_000


class _Rule(NamedTuple):
    """When a setting is refused, and why."""

    is_refused: Callable[[Any], bool]
    reason: str
    solvers: tuple[str, ...] = tuple(_CLASS_OF)
    """Names of `generation.scheduler` whose scheduler in diffusers would heed it."""
    of_own_class: bool = False
    """Whether it counts only if the directory's scheduler is of the solver's class."""


_THRESHOLDS = ("dpmsolver++", "ddim", "lcm")
_OF_FLOW = "a model of rectified flow, which cannot be run yet, not one of diffusion"
_RULES: Sequence[tuple[str, _Rule]] = (
    (
        "thresholding",
        _Rule(
            bool,
            "dynamic thresholding is made for pixels and wrong for latents, which leave [-1, 1]: "
            "set it to false there",
            _THRESHOLDS,
        ),
    ),
    ("use_flow_sigmas", _Rule(bool, _OF_FLOW)),
    (
        "variance_type",
        _Rule(
            lambda value: value in ("learned", "learned_range"),
            "a network that predicts variances too, which no Stable Diffusion does",
        ),
    ),
    (
        "prediction_type",
        _Rule(lambda value: value not in PREDICTIONS, f"it must be {', '.join(PREDICTIONS)}"),
    ),
    (
        "prediction_type",
        _Rule(
            lambda value: value == "sample",
            "generation.scheduler pndm needs a network that predicts noise or velocity: name "
            "another generation.scheduler",
            ("pndm",),
        ),
    ),
    (
        "skip_prk_steps",
        _Rule(
            lambda value: not value,
            "generation.scheduler pndm runs without Runge-Kutta steps, as Stable Diffusion does: "
            "set it to true there, or name another generation.scheduler",
            ("pndm",),
            of_own_class=True,
        ),
    ),
    (
        "rescale_betas_zero_snr",
        _Rule(
            bool,
            "diffusers' PNDM does not rescale betas: name another generation.scheduler",
            ("pndm",),
        ),
    ),
    (
        "algorithm_type",
        _Rule(
            lambda value: value not in ("dpmsolver++", "sde-dpmsolver++"),
            "generation.scheduler dpmsolver++ runs no other than dpmsolver++ and sde-dpmsolver++: "
            "set it to one of them there, or name another generation.scheduler",
            ("dpmsolver++",),
            of_own_class=True,
        ),
    ),
    (
        "solver_order",
        _Rule(
            lambda value: value not in (1, 2, 3),
            "generation.scheduler dpmsolver++ is of first to third order: set it to 1, 2 or 3 "
            "there, or name another generation.scheduler",
            ("dpmsolver++",),
            of_own_class=True,
        ),
    ),
    (
        "solver_type",
        _Rule(
            lambda value: value not in ("midpoint", "heun"),
            "generation.scheduler dpmsolver++ is the midpoint or Heun's method: set it to midpoint "
            "or heun there, or name another generation.scheduler",
            ("dpmsolver++",),
            of_own_class=True,
        ),
    ),
    (
        "num_train_timesteps",
        _Rule(
            lambda value: not _is_whole(value) or not 1 <= value <= _MAX_TRAIN_TIMESTEPS,
            f"it must be a whole number from 1 to {_MAX_TRAIN_TIMESTEPS}",
        ),
    ),
    (
        "beta_start",
        _Rule(lambda value: not _is_number(value) or not 0 < value < 1, "it must be in (0, 1)"),
    ),
    (
        "beta_end",
        _Rule(lambda value: not _is_number(value) or not 0 < value < 1, "it must be in (0, 1)"),
    ),
    (
        "steps_offset",
        _Rule(lambda value: not _is_whole(value) or value not in (0, 1), "it must be 0 or 1"),
    ),
)


def check_schedule(solver: str, model: Path) -> None:
    """Raise if a model's scheduler has a setting that would be left out.

    Args:
        solver: Name of the solver, `generation.scheduler`.
        model: Directory of the model.

    Raises:
        UserError: If so, or if the scheduler is of another kind of model; names the setting.
    """
    known = scheduler_settings(model)
    own_class = known.get("_class_name")
    if own_class is not None and str(own_class) not in SCHEDULERS:
        raise UserError(
            "generation.model must have a scheduler of diffusion in discrete steps, got "
            f"{own_class!r} in {model}"
        )
    if own_class == "PNDMScheduler":
        known = {"skip_prk_steps": False, **known}  # diffusers' default where it is silent
    for name, rule in _RULES:
        counts = solver in rule.solvers and (
            not rule.of_own_class or own_class == _CLASS_OF[solver]
        )
        if name in known and counts and rule.is_refused(known[name]):
            raise UserError(
                f"generation.model must have a scheduler that can be followed, got {name} "
                f"{known[name]!r} in {model / 'scheduler' / 'scheduler_config.json'}: {rule.reason}"
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
