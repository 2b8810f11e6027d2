import json
import shutil

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_model import copy_with

from online_aug.diffusion.directory import check_weights, tensor_shapes
from online_aug.diffusion.import_adapters import check_targets
from online_aug.errors import UserError

PARTS = ["unet", "vae", "text_encoder"]


@pytest.fixture
def model(tiny_model, tmp_path):
    return copy_with(tiny_model, tmp_path / "model")


def file_of(model, part):
    (path,) = (model / part).glob("*.safetensors")
    return path


def refused(model):
    with pytest.raises(UserError) as caught:
        check_weights(model)
    message = str(caught.value)
    assert message.startswith("generation.model must have ")
    assert "\n" not in message
    return message


def test_a_whole_model_is_taken(model):
    check_weights(model)


def test_names_and_shapes_are_those_of_the_tensors(model):
    path = file_of(model, "unet")
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
    assert tensor_shapes(model / "unet") == expected


def test_pytorch_s_own_files_are_read_too(model):
    path = file_of(model, "unet")
    expected = tensor_shapes(model / "unet")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert tensor_shapes(model / "unet") == expected


def test_weights_in_several_files_are_read_together(model):
    path = file_of(model, "unet")
    expected, content = tensor_shapes(model / "unet"), load_file(path)
    path.unlink()
    names = sorted(content)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, held in parts.items():
        save_file({key: content[key] for key in held}, model / "unet" / name)
    index = {"weight_map": {key: name for name, held in parts.items() for key in held}}
    (model / "unet" / f"{path.name}.index.json").write_text(json.dumps(index))
    assert tensor_shapes(model / "unet") == expected
    (model / "unet" / "b.safetensors").unlink()
    assert "b.safetensors" in refused(model)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_that_ends_early_is_named(model, part, kept):
    path = file_of(model, part)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"whole weight files, got {path} (" in refused(model)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_that_is_something_else_is_named(model, suffix):
    path = file_of(model, "vae")
    path.unlink()
    path.with_suffix(suffix).write_bytes(b"<html>not found</html>" * 100)
    assert f"got {path.with_suffix(suffix)} (" in refused(model)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_weights_is_named(model, part):
    file_of(model, part).unlink()
    assert f"must have weights in {model / part}" in refused(model)


def test_an_index_without_a_map_is_named(model):
    path = file_of(model, "unet")
    path.with_name(f"{path.name}.index.json").write_text("{}")
    assert "must have a whole" in refused(model)


def test_lora_can_be_learned_where_there_is_attention(miniature):
    check_targets(miniature, "joint")


def test_a_u_net_without_attention_cannot_learn_lora(model):
    shutil.rmtree(model / "unet")
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    plain = UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, add_attention=False, **blocks)
    plain.save_pretrained(model / "unet")
    with pytest.raises(UserError) as caught:
        check_targets(model, "staged")
    assert str(caught.value) == (
        f"generation.model must have attention in its U-Net for finetune.mode staged, got {model} "
        "without to_q, to_k, to_v, to_out.0; set finetune.enabled=false"
    )
