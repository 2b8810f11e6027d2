"""Adapters that let a model do with few steps, and the settings that such models need."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import copy_with

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.directory import scheduler_settings
from online_aug.diffusion.few_steps import (
    check_few_steps,
    digest_few_step_adapter,
    locate_few_step_adapter,
    read_few_step_adapter,
)
from online_aug.diffusion.loading import load_few_step_adapter, load_img2img
from online_aug.diffusion.weights import tensor_shapes
from online_aug.errors import UserError
from online_aug.generation.solver_tables import Step
from online_aug.generation.solvers import Solver

LAYER = "mid_block.resnets.0.conv1"


PLAIN = {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}


TURBO = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": False}


@pytest.fixture
def model_of(tiny_model, tmp_path):
    """Copies the tiny model with another schedule and, if distilled, with an embedded scale."""

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
    return GenerationConfig(
        model="merged", scheduler=scheduler, num_inference_steps=steps, guidance_scale=guidance
    )


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
def test_settings_that_go_with_a_model_pass(
    model_of, schedule, scale_width, scheduler, steps, guidance
):
    check_few_steps(settings(scheduler, steps, guidance), model_of(schedule, scale_width))


def test_the_embedded_model_is_known_to_be_distilled_with_no_guidance(tiny_model):
    few = {"scheduler": "lcm", "num_inference_steps": 4, "guidance_scale": 7.5}
    check_few_steps(GenerationConfig(model="embedded", **few), tiny_model)


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
def test_a_single_step_begins_at_noise_only_with_the_spacing_of_turbo_models(
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


@pytest.fixture
def matrices(tiny_model):
    """The LoRA of one convolution: a kernel of rank 2, and a mixture of its two channels."""
    rng = torch.Generator().manual_seed(5)
    shape = tensor_shapes(tiny_model / "unet")[f"{LAYER}.weight"]
    down = torch.randn(2, *shape[1:], generator=rng)
    up = torch.randn(shape[0], 2, 1, 1, generator=rng)
    return {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_an_adapter_is_merged_into_the_weights_at_its_strength(
    tiny_model, matrices, tmp_path, alpha
):
    down, up = matrices.values()
    kohya = "lora_unet_" + LAYER.replace(".", "_")
    own = {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up}
    path = tmp_path / "few.safetensors"
    save_file(own | {f"{kohya}.alpha": torch.tensor(alpha)} if alpha else matrices, path)
    pipeline = load_img2img(tiny_model, "float32")
    before = pipeline.unet.get_parameter(f"{LAYER}.weight").clone()
    load_few_step_adapter(pipeline, read_few_step_adapter(path, tiny_model), path)
    added = pipeline.unet.get_parameter(f"{LAYER}.weight") - before
    product = torch.einsum("orhw,rikl->oikl", up, down) * (0.5 if alpha else 1)
    torch.testing.assert_close(added, product, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_a_file_or_the_one_in_its_folder(matrices, tmp_path):
    path = tmp_path / "few.safetensors"
    save_file(matrices, path)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert locate_few_step_adapter(str(path)) == path
    assert locate_few_step_adapter(str(tmp_path)) == path
    assert locate_few_step_adapter(None) is None


def test_a_folder_without_one_adapter_is_one_clear_line(matrices, tmp_path):
    with pytest.raises(UserError, match=r"^generation\.few_step_adapter must be .* with none$"):
        locate_few_step_adapter(str(tmp_path))
    for name in ("a.safetensors", "b.safetensors"):
        save_file(matrices, tmp_path / name)
    with pytest.raises(UserError, match=r" with a\.safetensors, b\.safetensors$"):
        locate_few_step_adapter(str(tmp_path))


def test_an_adapter_that_is_nowhere_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"^generation\.few_step_adapter must be a LoRA ") as bad:
        locate_few_step_adapter(str(tmp_path / "none.safetensors"))
    assert "\n" not in str(bad.value)


def test_an_adapter_of_another_model_is_refused_by_its_key(tiny_model, matrices, tmp_path):
    path = tmp_path / "few.safetensors"
    save_file({name: tensor.repeat(1, 2, 1, 1) for name, tensor in matrices.items()}, path)
    with pytest.raises(UserError, match=r"^generation\.few_step_adapter must be of .* needs \d+"):
        read_few_step_adapter(path, tiny_model)


def test_an_adapter_that_ruins_the_weights_is_refused(tiny_model, matrices, tmp_path):
    path = tmp_path / "few.safetensors"
    save_file({name: tensor * torch.inf for name, tensor in matrices.items()}, path)
    lora = read_few_step_adapter(path, tiny_model)
    with pytest.raises(UserError, match=r"^generation\.few_step_adapter must leave all "):
        load_few_step_adapter(load_img2img(tiny_model, "float32"), lora, path)


def test_the_digest_depends_on_the_matrices_and_on_peft_s_strength(matrices, tmp_path):
    path = tmp_path / "few.safetensors"
    save_file(matrices, path)
    digests = [digest_few_step_adapter(path)]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": 2}))
    digests.append(digest_few_step_adapter(path))
    save_file({name: 2 * tensor for name, tensor in matrices.items()}, path)
    digests.append(digest_few_step_adapter(path))
    assert len(set(digests)) == 3
