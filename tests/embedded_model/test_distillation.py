"""Trajectories of a model, and the LoRA that is distilled from them."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.few_steps import (
    check_few_steps,
    locate_few_step_adapter,
    read_few_step_adapter,
)
from online_aug.diffusion.loading import load_few_step_adapter, load_img2img
from online_aug.errors import UserError
from online_aug.seeding import numpy_rng
from tools.embedded_model import distillation, training
from tools.embedded_model.trajectories import FIRST_TIMESTEP, Teacher, write_trajectories

RANK = 2
FEW = {"digits": 2, "birds": 2, "trajectories": 32, "batch_size": 2, "lr": 1e-3, "steps": 3}


def settings(work, **changes):
    return training.Settings(work=work, vae_steps=0, seed=0, device="cpu", **FEW | changes)


def unet_of(model):
    return UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32).eval()


def inputs():
    rng = torch.Generator().manual_seed(0)
    latents, words = torch.randn(1, 4, 16, 16, generator=rng), torch.randn(1, 5, 128, generator=rng)
    return latents, torch.tensor([500]), words


@torch.no_grad()
def test_new_matrices_have_no_effect(tiny_model):
    unet = unet_of(tiny_model)
    before = unet(*inputs()).sample
    distillation.add_lora(unet, RANK)
    torch.testing.assert_close(unet(*inputs()).sample, before)


@torch.no_grad()
def test_the_saved_adapter_does_what_the_trained_one_did(tiny_model, tmp_path):
    unet = unet_of(tiny_model)
    added = distillation.add_lora(unet, RANK)
    rng = torch.Generator().manual_seed(1)
    for pair in added.values():
        pair.up.copy_(0.05 * torch.randn(pair.up.shape, generator=rng))
    distillation.save_lora(added, unet, tmp_path)
    path = locate_few_step_adapter(str(tmp_path))
    pipeline = load_img2img(tiny_model, "float32")
    load_few_step_adapter(pipeline, read_few_step_adapter(path, tiny_model), path)
    expected = unet(*inputs()).sample
    torch.testing.assert_close(pipeline.unet(*inputs()).sample, expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_a_training_starts_from_a_saved_adapter(tiny_model, tmp_path):
    rng, unet = torch.Generator().manual_seed(1), unet_of(tiny_model)
    first, second = (
        distillation.add_lora(unet, RANK),
        distillation.add_lora(unet_of(tiny_model), RANK),
    )
    for pair in first.values():
        pair.up.copy_(torch.randn(pair.up.shape, generator=rng).half())
        pair.down.copy_(pair.down.half())
    distillation.save_lora(first, unet, tmp_path)
    distillation.load_lora(second, tmp_path)
    for name, pair in first.items():
        assert torch.equal(pair.up @ pair.down, second[name].up @ second[name].down)


def test_guidance_may_be_added_to_what_was_distilled_without(tiny_model, tmp_path):
    unet = unet_of(tiny_model)
    distillation.save_lora(distillation.add_lora(unet, RANK), unet, tmp_path)
    config = {
        "model": "merged",
        "scheduler": "lcm",
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
    }
    check_few_steps(GenerationConfig(few_step_adapter=str(tmp_path), **config), tiny_model)
    with pytest.raises(UserError, match=r"^generation\.guidance_scale must be at most 2 with "):
        check_few_steps(GenerationConfig(**config), tiny_model)


def test_states_lead_from_the_noised_image_to_the_end(tiny_model):
    teacher = Teacher(tiny_model, "cpu")
    clean = torch.zeros(2, 4, 16, 16)
    made = teacher.denoise(clean, ["a digit", ""], numpy_rng("one"))
    times = made["times"]
    assert (times.diff() < 0).all()
    assert times[-1] >= FIRST_TIMESTEP
    assert made["states"].shape == (len(times), 2, 4, 16, 16)
    assert not torch.equal(made["ends"], made["states"][-1])


@pytest.mark.slow
def test_a_stopped_distillation_goes_on_with_the_same_trajectories(tiny_model, tmp_path):
    (tmp_path / "work").mkdir()
    folder = write_trajectories(tiny_model, settings(tmp_path / "work"))
    written = {path: path.read_bytes() for path in folder.iterdir()}
    distillation.distil(tiny_model, settings(tmp_path / "work"), tmp_path / "out")
    assert {path: path.read_bytes() for path in folder.iterdir()} == written
    lora = read_few_step_adapter(locate_few_step_adapter(str(tmp_path / "out")), tiny_model)
    assert any(matrix.any() for name, matrix in lora.items() if ".lora_B." in name)
