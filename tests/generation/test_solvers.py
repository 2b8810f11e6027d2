"""Tables of coefficients, compared with the steps of diffusers' own schedulers."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from online_aug.config.sections import GenerationConfig
from online_aug.errors import UserError
from online_aug.generation.solver_tables import REMEMBERED, Step
from online_aug.generation.solvers import (
    SOLVERS,
    Solver,
    advance,
    nothing_before,
    sampling_scheduler,
)

PREDICTIONS = ["epsilon", "v_prediction"]
SHAPE = (1, 4, 4, 4)

few_examples = settings(max_examples=15)
schedules = st.fixed_dictionaries(
    {
        "prediction_type": st.sampled_from(PREDICTIONS),
        "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
        "steps_offset": st.integers(0, 1),
        "set_alpha_to_one": st.booleans(),
        "beta_schedule": st.sampled_from(["scaled_linear", "linear"]),
    },
    optional={
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
        "use_karras_sigmas": st.booleans(),
        "euler_at_final": st.booleans(),
        "lower_order_final": st.booleans(),
    },
)
"""Settings that a model's directory may have; each solver reads those it knows."""


def trained_with(**settings):
    """Return a noise schedule like Stable Diffusion's with some settings changed."""
    known = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    return known | {"beta_schedule": "scaled_linear", "prediction_type": "epsilon"} | settings


def network(latents, timestep):
    """Stand for a U-Net: any smooth function of its inputs will do to compare solvers."""
    time = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1, 1, 1) / 1000
    return torch.sin(2 * latents + time) * (1 - time / 2) + 0.3 * latents


def noises(count):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(3))


def lcm_steps(steps, strength):
    """Round up, but run no more steps than a consistency model knows."""
    return min(math.ceil(steps * strength), int(50 * strength))


def theirs(name, settings, steps, strength, source):
    """Run diffusers' scheduler in the loop of its image-to-image pipeline."""
    scheduler = sampling_scheduler(name, settings)
    first = steps - min(int(steps * strength), steps)
    if name == "lcm":  # its own pipeline spreads the steps over the strength
        scheduler.set_timesteps(lcm_steps(steps, strength), strength=strength)
        first = 0
    else:
        scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    rng = torch.Generator().manual_seed(3)
    latents = scheduler.add_noise(source, torch.randn(SHAPE, generator=rng), timesteps[:1])
    for time in timesteps:
        output = network(scheduler.scale_model_input(latents, time), time)
        takes = {"generator": rng} if name in {"euler_ancestral", "lcm", "dpmsolver++"} else {}
        latents = scheduler.step(output, time, latents, **takes).prev_sample
    return latents


def ours(name, settings, steps, strength, source):
    way = Solver(name, settings).from_image(steps, strength)
    rng = torch.Generator().manual_seed(3)
    noise = torch.randn(SHAPE, generator=rng)
    latents, previous = way.start_image * source + way.start_noise * noise, nothing_before(source)
    for row in way.rows:
        step = Step(*row)
        output = network(step.input_latent * latents, step.timestep)
        noise = torch.randn(SHAPE, generator=rng) if step.next_noise else torch.zeros(SHAPE)
        latents, previous = advance(step, latents, output, previous, noise)
    return latents


@pytest.mark.parametrize("name", SOLVERS)
@few_examples
@given(changes=schedules, steps=st.integers(2, 30), strength=st.sampled_from([0.5, 0.71, 1.0]))
def test_a_trajectory_is_the_one_of_diffusers_scheduler(name, changes, steps, strength):
    settings = trained_with(**changes)
    source = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = theirs(name, settings, steps, strength, source)
    made = ours(name, settings, steps, strength, source)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


OWN = {"_class_name": "DPMSolverMultistepScheduler"}
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize(
    "kind", [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")]
)
@few_examples
@given(changes=schedules, steps=st.integers(2, 30), strength=st.sampled_from([0.5, 0.71, 1.0]))
def test_a_directory_s_own_kind_of_dpm_solver_is_followed(
    algorithm, kind, changes, steps, strength
):
    own = {"algorithm_type": algorithm, "solver_order": kind[0], "solver_type": kind[1]}
    settings = trained_with(**OWN, **own, **changes)
    source = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = theirs("dpmsolver++", settings, steps, strength, source)
    made = ours("dpmsolver++", settings, steps, strength, source)
    assert made.isfinite().all()
    assume(expected.isfinite().all())  # after a step of no width diffusers has none
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_the_kinds_of_dpm_solver_make_different_images():
    source = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    kinds = [{}, {"solver_order": 1}, {"solver_type": "heun"}, {"solver_order": 3}]
    kinds.append({"algorithm_type": "sde-dpmsolver++"})
    made = [ours("dpmsolver++", trained_with(**OWN, **kind), 20, 0.7, source) for kind in kinds]
    for n, image in enumerate(made):
        assert not any(torch.allclose(image, other, atol=1e-3) for other in made[:n])


@pytest.mark.parametrize("name", SOLVERS)
@few_examples
@given(
    spacing=st.sampled_from(["trailing", "linspace"]),
    steps=st.integers(2, 30),
    strength=st.sampled_from([0.5, 0.71, 1.0]),
)
def test_a_trajectory_from_zero_terminal_snr_is_the_one_of_diffusers_scheduler(
    name, spacing, steps, strength
):
    settings = trained_with(
        rescale_betas_zero_snr=True, timestep_spacing=spacing, prediction_type="v_prediction"
    )
    source = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = theirs(name, settings, steps, strength, source)
    made = ours(name, settings, steps, strength, source)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - {"lcm"}))
@few_examples
@given(steps=st.integers(1, 50), hundredths=st.integers(1, 100))
def test_as_many_steps_are_run_as_diffusers_runs(name, steps, hundredths):
    executed = int(steps * (hundredths / 100))
    again = int(name == "pndm" and steps > 1)  # takes its first step twice
    if executed:
        way = Solver(name, trained_with()).from_image(steps, hundredths / 100)
        assert len(way) == executed + again


@few_examples
@given(steps=st.integers(1, 8), hundredths=st.integers(2, 100))
def test_few_steps_begin_at_the_strength_itself_and_are_rounded_up(steps, hundredths):
    strength = hundredths / 100
    way = Solver("lcm", trained_with()).from_image(steps, strength)
    assert len(way) == lcm_steps(steps, strength)
    assert Step(*way.rows[0]).timestep == 20 * int(50 * strength) - 1


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_from_noise_all_steps_are_run_and_the_source_has_no_weight(name, spacing):
    settings = trained_with(timestep_spacing=spacing)
    way = Solver(name, settings).from_noise(7)
    scheduler = sampling_scheduler(name, settings)
    scheduler.set_timesteps(7)
    assert (way.start_image, len(way)) == (0, 8 if name == "pndm" else 7)
    assert way.start_noise == pytest.approx(float(scheduler.init_noise_sigma))


@few_examples
@given(steps=st.integers(2, 60), hundredths=st.integers(50, 100), changes=schedules)
def test_an_image_by_pndm_is_the_one_of_diffusers_to_four_hundred_thousandths(
    steps, hundredths, changes
):
    settings = trained_with(**PNDM, **changes)
    source = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = theirs("pndm", settings, steps, hundredths / 100, source)
    made = ours("pndm", settings, steps, hundredths / 100, source)
    torch.testing.assert_close(made, expected, rtol=4e-5, atol=4e-5)


REMEMBERED_COLUMNS = slice(Step._fields.index("next_previous"), Step._fields.index("next_noise"))


@pytest.mark.parametrize("name", SOLVERS)
@few_examples
@given(steps=st.integers(2, 30))
def test_the_first_step_asks_for_no_history_whatever_the_strength(name, steps):
    for strength in (0.5, 1.0):
        rows = Solver(name, trained_with()).from_image(steps, strength).rows
        assert not rows[0][REMEMBERED_COLUMNS].any()


@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_a_solver_that_cannot_start_from_noise_alone_is_refused(name):
    settings = trained_with(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    solver = Solver(name, settings)
    with pytest.raises(UserError, match=rf"^generation\.scheduler must be .* got '{name}'$"):
        solver.from_noise(50)
    assert solver.from_image(50, 0.9).rows.isfinite().all()


def test_more_steps_than_an_lcm_has_are_an_error_line():
    with pytest.raises(UserError, match=r"^generation\.num_inference_steps does not fit: ") as bad:
        Solver("lcm", trained_with()).from_noise(51)
    assert "\n" not in str(bad.value)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_model_that_predicts_something_else_is_refused(name):
    with pytest.raises(UserError, match="must predict epsilon.* v_prediction .* says flow$"):
        Solver(name, trained_with(prediction_type="flow")).from_noise(4)


def test_slots_with_different_solvers_advance_as_if_each_were_alone():
    ways = [Solver(name, trained_with()).from_image(12, 0.7) for name in SOLVERS]
    rows = torch.stack([way.rows[place] for place, way in enumerate(ways)])
    together = Step(*rows.T[..., None, None, None])
    rng = torch.Generator().manual_seed(0)
    latent, output, noise = torch.randn(3, len(ways), 4, 8, 8, generator=rng)
    before = torch.randn(REMEMBERED, len(ways), 4, 8, 8, generator=rng)
    made, data = advance(together, latent, output, before, noise)
    for slot, row in enumerate(rows):
        one = slice(slot, slot + 1)
        alone, own = advance(Step(*row), latent[one], output[one], before[:, one], noise[one])
        torch.testing.assert_close(made[slot], alone[0])
        torch.testing.assert_close(data[:, slot], own[:, 0])


def test_solvers_are_named_as_the_configuration_names_them():
    assert set(SOLVERS) == set(get_args(GenerationConfig.model_fields["scheduler"].annotation))
