"""Fine-tuning before it starts: its stages, its folder, what it needs of model and device."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from tiny_model import copy_with

from online_aug.config import Config
from online_aug.config.sections import FinetuneConfig
from online_aug.diffusion.adaptation import (
    DECIDES_NOTHING,
    check_lora_layers,
    check_prediction,
    check_training_dtype,
    finetuned_folder,
    stages_of,
    steps_from,
    total_steps,
)
from online_aug.errors import UserError


def plan(**settings):
    """The steps of each stage, what it learns, and of which class."""
    return [
        (stage.steps, stage.learns_tokens, stage.learns_lora, stage.label)
        for stage in stages_of(FinetuneConfig(**settings), num_classes=3)
    ]


def test_diff_mix_learns_tokens_and_lora_at_once():
    assert plan(steps=7) == [(7, True, True, None)]


def test_textual_inversion_learns_tokens_only():
    assert plan(steps=7, mode="textual_inversion") == [(7, True, False, None)]


def test_da_fusion_learns_the_token_of_each_class_in_a_run_of_its_own():
    expected = [(7, True, False, label) for label in range(3)]
    assert plan(steps=7, mode="textual_inversion", per_class=True) == expected


def test_staged_learns_tokens_and_then_lora():
    assert plan(steps=7, mode="staged") == [(7, True, False, None), (7, False, True, None)]
    assert plan(steps=7, token_steps=2, mode="staged") == [
        (2, True, False, None),
        (7, False, True, None),
    ]


def test_staged_by_class_ends_with_one_lora_for_all():
    expected = [*((2, True, False, label) for label in range(3)), (7, False, True, None)]
    assert plan(steps=7, token_steps=2, mode="staged", per_class=True) == expected


def test_lora_only_learns_no_tokens():
    assert plan(steps=7, mode="lora") == [(7, False, True, None)]


@pytest.mark.parametrize("first", range(9))
def test_from_any_step_on_the_rest_of_the_stages_follows(first):
    stages = stages_of(FinetuneConfig(steps=5, token_steps=3, mode="staged"), num_classes=3)
    assert total_steps(stages) == 8
    tokens, lora = stages
    every = [(n, tokens, n) for n in range(3)] + [(3 + n, lora, n) for n in range(5)]
    assert list(steps_from(stages, first)) == every[first:]


@pytest.mark.parametrize("mode", ["joint", "lora"])
def test_classes_cannot_have_a_lora_each(mode):
    with pytest.raises(ValueError, match="finetune.per_class must be false unless finetune.mode"):
        Config(finetune={"mode": mode, "per_class": True})


IMAGES = "ab" * 16
SETTINGS = [64, 0.5, "a photo of a <class_0>"]


def place(model_digest="m", images=IMAGES, settings=SETTINGS, **changes):
    return finetuned_folder(FinetuneConfig(**changes), model_digest, images, settings)


def test_a_fine_tuning_result_lies_in_its_folder_by_a_digest(tmp_path):
    assert place(path=tmp_path).parent == tmp_path
    assert place(path=tmp_path) == place(path=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": "n"},
        {"images": "cd" * 16},
        {"settings": [128, 0.5, "a photo of a <class_0>"]},
        {"settings": [64, 0.5, "a photo of a <class_0> bird"]},
    ],
)
def test_model_images_and_prompts_decide_the_folder_of_a_result(changes):
    assert place(**changes) != place()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("name", FinetuneConfig.model_fields)
def test_every_setting_that_decides_a_result_decides_its_folder(name):
    changed = FinetuneConfig().model_copy(update={name: Path("other")})
    folder = finetuned_folder(changed, "m", IMAGES, SETTINGS)
    assert (folder.name == place().name) == (name in DECIDES_NOTHING)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_cpu_trains_in_single_precision_and_bfloat16(name):
    check_training_dtype(name, "cpu")


def test_float16_on_a_cpu_is_refused_in_one_line():
    with pytest.raises(UserError, match="^finetune.dtype must be float32 or bfloat16 on cpu, got"):
        check_training_dtype("float16", "cpu")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_bfloat16_needs_a_gpu_that_has_it(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_training_dtype("float16", "cuda:0")
    if capability >= (8, 0):
        check_training_dtype("bfloat16", "cuda:0")
        return
    with pytest.raises(UserError, match="^finetune.dtype must be float32 or float16 on cuda:0"):
        check_training_dtype("bfloat16", "cuda:0")


@pytest.mark.parametrize("said", ["epsilon", "v_prediction"])
def test_a_model_of_noise_or_velocity_can_be_trained(tiny_model, tmp_path, said):
    check_prediction(copy_with(tiny_model, tmp_path / "m", "scheduler", prediction_type=said))


def test_a_model_of_clean_images_is_refused_in_one_line(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "m", "scheduler", prediction_type="sample")
    with pytest.raises(
        UserError, match="^generation.model must predict epsilon or v_prediction to be fine-tuned"
    ):
        check_prediction(model)


def test_a_u_net_with_attention_can_learn_lora(tiny_model):
    check_lora_layers(tiny_model, "joint")


def test_a_u_net_without_attention_cannot_learn_lora(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "model")
    shutil.rmtree(model / "unet")
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    plain = UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, add_attention=False, **blocks)
    plain.save_pretrained(model / "unet")
    with pytest.raises(UserError) as caught:
        check_lora_layers(model, "staged")
    assert str(caught.value) == (
        f"generation.model must have attention in its U-Net for finetune.mode staged, got {model} "
        "without to_q, to_k, to_v, to_out.0; set finetune.enabled=false"
    )
