"""Every setting of every scheduler that diffusers has: honoured, without effect, or refused."""

import importlib
import inspect
import pkgutil

import diffusers
import pytest
import torch
from tiny_model import copy_with

from online_aug.diffusion.schedule_settings import SCHEDULERS, check_schedule
from online_aug.errors import UserError
from online_aug.generation.solver_tables import Step
from online_aug.generation.solvers import SOLVERS, Solver, advance, nothing_before

SHAPE = (1, 4, 4, 4)
STEPS = 6
HONOURED = {
    "num_train_timesteps": [900],
    "beta_start": [0.002],
    "beta_end": [0.02],
    "beta_schedule": ["linear", "squaredcos_cap_v2"],
    "trained_betas": [[0.001 + 0.00001 * step for step in range(1000)]],
    "prediction_type": ["v_prediction", "sample"],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "steps_offset": [1],
    "set_alpha_to_one": [False],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "lambda_min_clipped": [-5.1],
    "lower_order_final": [False],
    "euler_at_final": [True],
    "final_sigmas_type": ["sigma_min"],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "sigma_min": [0.1],
    "sigma_max": [10.0],
    "original_inference_steps": [40],
    "timestep_scaling": [8.0],
    "rescale_betas_zero_snr": [True],
    "skip_prk_steps": [True],
    "solver_order": [1, 3],
}
"""Settings that decide time steps and noise levels, with other values than the defaults."""
WITHOUT_EFFECT = {
    "clip_sample": [True],  # diffusers' own pipelines of Stable Diffusion turn it off
    "clip_sample_range": [2.0],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [2.0],
    "flow_shift": [3.0],
    "use_dynamic_shifting": [True],
    "time_shift_type": ["linear"],
    "shift_terminal": [0.1],
    "variance_type": ["fixed_small"],
    "predict_x0": [False],
    "solver_p": [None],
    "disable_corrector": [[0]],
    "predictor_order": [3],
    "corrector_order": [3],
    "tau_func": [None],
    "noise_sampler_seed": [1],
}
"""Settings of other solvers, and of what is turned off or refused."""
REFUSED = {
    "thresholding": (True, ["dpmsolver++", "ddim", "lcm"]),
    "use_flow_sigmas": (True, list(SOLVERS)),
    "variance_type": ("learned_range", list(SOLVERS)),
    "prediction_type": ("flow_prediction", list(SOLVERS)),
    "algorithm_type": ("sde-dpmsolver", ["dpmsolver++"]),
    "solver_order": (4, ["dpmsolver++"]),
    "skip_prk_steps": (False, ["pndm"]),
    "rescale_betas_zero_snr": (True, ["pndm"]),
    "solver_type": ("logrho", ["dpmsolver++"]),
    "num_train_timesteps": (10**12, list(SOLVERS)),
    "beta_start": ("small", list(SOLVERS)),
    "beta_end": (2, list(SOLVERS)),
    "steps_offset": (7, list(SOLVERS)),
}
"""A refused value, and the solvers that would have to heed it."""
OF_PNDM = {"skip_prk_steps": True, "rescale_betas_zero_snr": False}
"""Settings with which PNDM can be followed, as in Stable Diffusion's directories."""
OTHER_MODELS = {
    *("AmusedScheduler", "BlockRefinementScheduler", "CMStochasticIterativeScheduler"),
    *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "ConsistencyDecoderScheduler"),
    *("CosineDPMSolverMultistepScheduler", "DDPMWuerstchenScheduler", "DiscreteDDIMScheduler"),
    *("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "EntropyBoundScheduler"),
    *("FlowMapEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeliosDMDScheduler"),
    *("HeliosScheduler", "IPNDMScheduler", "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"),
    *("PiflowScheduler", "RFD4ProteinaScheduler", "RePaintScheduler", "SCMScheduler"),
    *("ScoreSdeVeScheduler", "UnCLIPScheduler", "VQDiffusionScheduler"),
}
"""Schedulers of diffusers for other kinds of models, which are refused by their class."""


def classes_of_diffusers():
    """Return diffusers' scheduler classes by name, without those whose libraries are missing."""
    found = {}
    for module in pkgutil.iter_modules(diffusers.schedulers.__path__):
        try:
            content = importlib.import_module(f"diffusers.schedulers.{module.name}")
        except ImportError:
            continue
        for name, kind in vars(content).items():
            is_own = inspect.isclass(kind) and kind.__module__ == content.__name__
            if is_own and name != "SchedulerMixin" and hasattr(kind, "from_config"):
                found[name] = kind
    return found


def settings_of(kind):
    return set(list(inspect.signature(kind.__init__).parameters)[1:]) - {"kwargs"}


def test_every_scheduler_of_diffusers_is_known():
    assert set(classes_of_diffusers()) - SCHEDULERS - OTHER_MODELS == set()


def test_every_setting_of_every_scheduler_that_is_followed_is_in_a_table():
    known = HONOURED.keys() | WITHOUT_EFFECT.keys() | REFUSED.keys()
    found = {
        name: settings_of(kind) - known
        for name, kind in classes_of_diffusers().items()
        if name in SCHEDULERS
    }
    assert {name: rest for name, rest in found.items() if rest} == {}


def trained_with(solver, **changes):
    known = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if solver == "pndm":
        known["skip_prk_steps"] = True  # as Stable Diffusion's directories say
    return (
        known | {"_class_name": SOLVERS[solver].schedule.__name__, "clip_sample": False} | changes
    )


def network(latents, time):
    return torch.sin(2 * latents + torch.as_tensor(time, dtype=torch.float32) / 1000)


def theirs(solver, settings):
    """Denoise by diffusers' scheduler with the directory's settings and none of ours."""
    scheduler = SOLVERS[solver].schedule.from_config(settings)
    scheduler.set_timesteps(STEPS)
    rng = torch.Generator().manual_seed(3)
    latents = torch.randn(SHAPE, generator=rng) * scheduler.init_noise_sigma
    takes = {"generator": rng} if solver in {"euler_ancestral", "lcm"} else {}
    for time in scheduler.timesteps:
        output = network(scheduler.scale_model_input(latents, time), time)
        latents = scheduler.step(output, time, latents, **takes).prev_sample
    return latents


def ours(solver, settings):
    way = Solver(solver, settings).from_noise(STEPS)
    rng = torch.Generator().manual_seed(3)
    latents = torch.randn(SHAPE, generator=rng) * way.start_noise
    previous = nothing_before(latents)
    for row in way.rows:
        step = Step(*row)
        output = network(step.input_latent * latents, step.timestep)
        noise = torch.randn(SHAPE, generator=rng) if step.next_noise else torch.zeros(SHAPE)
        latents, previous = advance(step, latents, output, previous, noise)
    return latents


def with_settings(solver, name, value):
    settings = trained_with(solver, **{name: value})
    if name in {"sigma_min", "sigma_max"}:
        settings["use_karras_sigmas"] = True  # which alone reads them
    if name in {"timestep_type", "rescale_betas_zero_snr"}:
        settings["prediction_type"] = "v_prediction"
    if name == "rescale_betas_zero_snr":
        settings["timestep_spacing"] = "trailing"
    if name == "clip_sample":  # as diffusers' pipelines do
        settings |= {"clip_sample": False}
    return settings


FOLLOWED = [
    (solver, name, value)
    for solver in SOLVERS
    for name, values in {**HONOURED, **WITHOUT_EFFECT}.items()
    for value in values
    if name in settings_of(SOLVERS[solver].schedule)
    and (solver, value) not in [("euler_ancestral", "sample"), ("pndm", "sample")]  # nor has it
]


@pytest.mark.parametrize(("solver", "name", "value"), FOLLOWED)
def test_a_setting_changes_images_as_in_diffusers(solver, name, value):
    settings = with_settings(solver, name, value)
    made, expected = ours(solver, settings), theirs(solver, settings)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


def refused(model, solver):
    with pytest.raises(UserError) as caught:
        check_schedule(solver, model)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_would_be_left_out_is_refused_by_name(tiny_model, tmp_path, name):
    value, solvers = REFUSED[name]
    for solver in SOLVERS:
        own = {"_class_name": SOLVERS[solver].schedule.__name__, **OF_PNDM}
        model = copy_with(tiny_model, tmp_path / solver, "scheduler", **own | {name: value})
        if solver in solvers:
            assert f"got {name} {value!r} in " in refused(model, solver)
        else:
            check_schedule(solver, model)


def test_pndm_with_its_runge_kutta_steps_is_refused_where_the_directory_leaves_it_to_diffusers(
    tiny_model, tmp_path
):
    own = {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": False}
    model = copy_with(tiny_model, tmp_path / "model", "scheduler", **own)
    assert "got skip_prk_steps False in " in refused(model, "pndm")


def test_thresholding_is_wrong_for_latents_and_that_is_said(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "model", "scheduler", thresholding=True)
    assert "made for pixels and wrong for latents" in refused(model, "dpmsolver++")


def test_the_solver_of_a_directory_of_another_class_does_not_count(tiny_model, tmp_path):
    changes = {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2", "solver_order": 3}
    check_schedule("dpmsolver++", copy_with(tiny_model, tmp_path / "m", "scheduler", **changes))


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "NoSuchScheduler", 7, []])
def test_a_scheduler_of_another_kind_of_model_is_refused_by_its_class(tiny_model, tmp_path, name):
    model = copy_with(tiny_model, tmp_path / "model", "scheduler", _class_name=name)
    assert f"of diffusion in discrete steps, got {name!r}" in refused(model, "ddim")
