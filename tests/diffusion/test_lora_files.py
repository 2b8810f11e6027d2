"""LoRA files of other tools: known by what they hold, used at their strength, or refused."""

import json
import os

import pytest
import torch
from finetuning_samples import NAMED
from safetensors.torch import save_file

from online_aug.config.sections import FinetuneConfig
from online_aug.diffusion.adapters import find_adapters
from online_aug.diffusion.import_adapters import import_adapters
from online_aug.diffusion.loading import load_adapters, load_img2img
from online_aug.diffusion.weights import tensor_shapes
from online_aug.errors import UserError

RANK = 2


@pytest.fixture(scope="module")
def matrices(tiny_model):
    """The two matrices of a LoRA on every query of the U-Net, by layer."""
    rng = torch.Generator().manual_seed(5)
    found = {}
    for name, shape in tensor_shapes(tiny_model / "unet").items():
        if name.endswith(".to_q.weight"):
            down, up = (
                torch.randn(RANK, shape[1], generator=rng),
                torch.randn(shape[0], RANK, generator=rng),
            )
            found[name.removesuffix(".weight")] = (down, up)
    return found


def in_diffusers(matrices):
    pairs = {"lora_A": 0, "lora_B": 1}
    return {
        f"unet.{layer}.{side}.weight": both[place]
        for layer, both in matrices.items()
        for side, place in pairs.items()
    }


def in_kohya(matrices, alpha):
    content = {}
    for layer, (down, up) in matrices.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        content |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        content[f"{name}.alpha"] = torch.tensor(alpha)
    return content


def in_peft(matrices):
    return {
        name.replace("unet.", "base_model.model."): tensor
        for name, tensor in in_diffusers(matrices).items()
    }


def read(path, model):
    files = find_adapters(path)
    assert files is not None
    assert files.tokens == ()
    return import_adapters(files, NAMED, FinetuneConfig(mode="lora"), model)


def first_query(model, adapters):
    """The first merged weight of the U-Net."""
    pipeline = load_img2img(model, "float32")
    before = dict(pipeline.unet.state_dict())
    name = next(name for name in before if name.endswith(".to_q.weight"))
    weight = before[name].clone()
    load_adapters(pipeline, adapters)
    return name.removesuffix(".weight"), pipeline.unet.state_dict()[name] - weight


@pytest.mark.parametrize("name", ["my_bird.safetensors", "my_bird.pt", "my_bird.bin"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_lora_of_any_name_is_taken_for_one(tiny_model, matrices, tmp_path, name, is_folder):
    content, path = in_diffusers(matrices), tmp_path / name
    save_file(content, path) if name.endswith("safetensors") else torch.save(content, path)
    found = read(tmp_path if is_folder else path, tiny_model).lora
    assert found.keys() == content.keys()


def test_kohya_s_file_has_its_own_strength(tiny_model, matrices, tmp_path):
    save_file(in_kohya(matrices, alpha=1.0), tmp_path / "kohya.safetensors")
    layer, added = first_query(tiny_model, read(tmp_path, tiny_model))
    down, up = matrices[layer]
    torch.testing.assert_close(added, up @ down * (1.0 / RANK), rtol=1e-4, atol=1e-4)


def test_peft_s_folder_has_its_own_strength(tiny_model, matrices, tmp_path):
    save_file(in_peft(matrices), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": RANK}))
    layer, added = first_query(tiny_model, read(tmp_path, tiny_model))
    down, up = matrices[layer]
    torch.testing.assert_close(added, up @ down * 3.0, rtol=1e-4, atol=1e-4)


def refused(path, model):
    with pytest.raises(UserError) as caught:
        read(path, model)
    message = str(caught.value)
    assert message.startswith("finetune.path must ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "text",
    [
        None,
        "[]",
        "[" * 100_000,
        '{"r": 2}',
        '{"lora_alpha": 1, "r": 0}',
        '{"lora_alpha": [], "r": 2}',
    ]
    + ['{"lora_alpha": 1, "r": 2, "rank_pattern": {"x": 1}}'],
)
def test_peft_s_file_without_its_settings_is_refused(tiny_model, matrices, tmp_path, text):
    save_file(in_peft(matrices), tmp_path / "adapter_model.safetensors")
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    assert "must have peft's adapter_config.json beside " in refused(tmp_path, tiny_model)


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
    ],
)
def test_a_lora_of_the_text_encoder_is_refused_by_its_key(tiny_model, matrices, tmp_path, name):
    content = in_diffusers(matrices) | {name: torch.zeros(RANK, 8)}
    save_file(content, tmp_path / "both.safetensors")
    message = refused(tmp_path, tiny_model)
    assert f"got {name} of the text encoder in {tmp_path / 'both.safetensors'}" in message


@pytest.mark.parametrize("name", ["unet.x.hada_w1_a", "lora_unet_no_such_layer.lora_up.weight"])
def test_another_layout_is_refused_by_the_key(tiny_model, matrices, tmp_path, name):
    content = in_kohya(matrices, 1.0) | {name: torch.zeros(8, RANK)}
    save_file(content, tmp_path / "other.safetensors")
    assert f"diffusers, kohya or peft, got {name} in " in refused(tmp_path, tiny_model)


def test_matrices_of_two_ranks_are_refused(tiny_model, matrices, tmp_path):
    content = in_diffusers(matrices)
    name = next(name for name in content if "lora_A" in name)
    content[name] = torch.cat([content[name], content[name]])
    save_file(content, tmp_path / "ranks.safetensors")
    assert "matrices of one rank" in refused(tmp_path, tiny_model)


def test_two_lora_files_in_a_folder_are_refused(tiny_model, matrices, tmp_path):
    for name in ("a", "b"):
        save_file(in_diffusers(matrices), tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"must name one LoRA, got .* with a\.safetensors, b\.saf"):
        find_adapters(tmp_path)


def test_a_pipe_among_the_files_is_passed_over(tiny_model, matrices, tmp_path):
    for name in ("a.bin", "b.safetensors", "learned_embeds.bin"):
        os.mkfifo(tmp_path / name)
    assert find_adapters(tmp_path) is None
    save_file(in_diffusers(matrices), tmp_path / "c.safetensors")
    assert read(tmp_path, tiny_model).lora is not None
