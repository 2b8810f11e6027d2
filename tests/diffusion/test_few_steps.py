"""Consistency models and turbo: what goes with them is taken, what ruins their images is said."""

import pytest
from tiny_model import copy_with

from online_aug.config.generation import GenerationConfig
from online_aug.diffusion.directory import check_few_steps, scheduler_settings
from online_aug.errors import UserError
from online_aug.generation.solvers import Solver, Step

PLAIN = {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}
TURBO = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": False}


@pytest.fixture
def model_of(tiny_model, tmp_path):
    """A copy of the tiny model with a scheduler and, where it is distilled, an embedded scale."""

    def make(schedule, scale_width=None):
        model = copy_with(tiny_model, tmp_path / "model", "scheduler", **schedule)
        path = model / "unet" / "config.json"
        text = path.read_text().replace(
            '"time_cond_proj_dim": null',
            f'"time_cond_proj_dim": {scale_width or "null"}',
        )
        path.write_text(text)
        return model

    return make


def settings(scheduler, steps, guidance):
    return GenerationConfig(scheduler=scheduler, num_inference_steps=steps, guidance_scale=guidance)


@pytest.mark.parametrize(
    ("schedule", "scale_width", "scheduler", "steps", "guidance"),
    [
        (PLAIN, None, "dpmsolver++", 25, 7.5),
        (PLAIN, None, "ddim", 2, 7.5),
        (PLAIN, None, "lcm", 4, 1),
        (PLAIN, None, "lcm", 8, 2),
        (PLAIN, 256, "lcm", 4, 8.5),
        (TURBO, None, "euler_ancestral", 1, 1),
        (TURBO, None, "euler", 4, 1),
        (TURBO, None, "euler", 25, 7.5),
    ],
)
def test_settings_that_go_with_a_model_are_taken(
    model_of, schedule, scale_width, scheduler, steps, guidance
):
    check_few_steps(settings(scheduler, steps, guidance), model_of(schedule, scale_width))


def test_a_model_that_was_trained_from_pure_noise_is_no_turbo_model(tiny_model):
    schedule = scheduler_settings(tiny_model)
    assert schedule["timestep_spacing"] == "trailing"
    check_few_steps(settings("euler", 4, 7.5), tiny_model)


@pytest.mark.parametrize(
    ("schedule", "scale_width", "scheduler", "steps", "guidance", "message"),
    [
        (
            PLAIN, None, "lcm", 4, 7.5,
            r"generation\.guidance_scale must be at most 2 with .*scheduler lcm, got 7\.5: ",
        ),
        (
            PLAIN, 256, "dpmsolver++", 25, 7.5,
            r"generation\.scheduler must be lcm for .*, a consistency model .* got dpmsolver\+\+$",
        ),
        (
            TURBO, None, "euler", 1, 7.5,
            r"generation\.guidance_scale must be 1 for 1 steps of .* turbo model, got 7\.5$",
        ),
        (
            PLAIN, None, "euler", 1, 1,
            r"generation\.num_inference_steps must be at least 2 .* without noise, got 1: turbo",
        ),
    ],
)  # fmt: skip
def test_settings_that_ruin_the_images_of_a_model_are_one_clear_line(  # noqa: PLR0913
    model_of, schedule, scale_width, scheduler, steps, guidance, message
):
    with pytest.raises(UserError, match=message) as caught:
        check_few_steps(settings(scheduler, steps, guidance), model_of(schedule, scale_width))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("schedule", "begins_at"), [(TURBO, 999), (PLAIN, 0)])
def test_one_step_begins_at_noise_with_the_spacing_of_turbo_and_with_no_other(
    model_of, schedule, begins_at
):
    way = Solver("euler", scheduler_settings(model_of(schedule))).from_image(1, 1.0)
    assert int(Step(*way.rows[0]).timestep) == pytest.approx(begins_at, abs=1)


def test_a_scheduler_that_cannot_be_read_is_one_clear_line(model_of):
    model = model_of(PLAIN)
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text("[1")
    with pytest.raises(UserError, match=r"^generation\.model must have a readable .*config\.json"):
        check_few_steps(settings("euler", 4, 1), model)
