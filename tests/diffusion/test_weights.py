"""Weight files without loading them: shapes, damage, digests, the fingerprint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import copy_with

from online_aug.diffusion import weights
from online_aug.diffusion.loading import load_img2img
from online_aug.diffusion.weights import (
    check_weights,
    digest_folder,
    digest_model,
    fingerprint,
    locate_unet,
    read_unet,
    tensor_shapes,
)
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


def test_a_whole_model_passes(model):
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


def test_a_file_of_an_autoencoder_that_ends_early_is_named(tiny_model, tiny_vae, tmp_path):
    folder = copy_with(tiny_vae, tmp_path / "vae")
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=rf"^generation\.vae must have whole weight files, got {path} "
    ):
        check_weights(tiny_model, folder)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_copy_of_a_model_has_its_digest(tiny_model, model):
    assert digest_folder(model) == digest_folder(tiny_model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_one_bit_of_any_weight_changes_the_digest(tiny_model, model, part):
    (path,) = (model / part).glob("*.safetensors")
    flip_a_bit(path)
    assert digest_folder(model) != digest_folder(tiny_model)


@pytest.mark.parametrize(
    "name", ["scheduler/scheduler_config.json", "model_index.json", "tokenizer/tokenizer.json"]
)
def test_settings_and_vocabulary_are_part_of_the_digest(tiny_model, model, name):
    with (model / name).open("a") as file:
        file.write(" ")
    assert digest_folder(model) != digest_folder(tiny_model)


def test_a_renamed_file_changes_the_digest(tiny_model, model):
    (model / "unet" / "config.json").rename(model / "unet" / "other.json")
    assert digest_folder(model) != digest_folder(tiny_model)


def test_a_readme_and_a_sample_do_not_change_the_digest(tiny_model, model):
    (model / "README.md").write_text("a model")
    (model / "samples.png").write_bytes(b"png")
    assert digest_folder(model) == digest_folder(tiny_model)


def test_a_digest_leaves_out_what_lies_beside_the_folder(tiny_model, model):
    shutil.copytree(model / "unet", model.parent / "beside")
    assert digest_folder(model) == digest_folder(tiny_model)


def test_a_fingerprint_tells_weights_adapters_and_number_format_apart():
    made = [
        fingerprint("m", None, "float32"),
        fingerprint("n", None, "float32"),
        fingerprint("m", None, "float16"),
        fingerprint("m", "one", "float32"),
        fingerprint("m", "other", "float32"),
    ]
    assert len(set(made)) == len(made)


def test_only_a_replaced_autoencoder_changes_the_fingerprint():
    made = [fingerprint("m", None, "float32", vae) for vae in (None, "v", "w")]
    assert len(set(made)) == 3
    assert made[0] == fingerprint("m", None, "float32") == "5b9ec10f1c625a206877a165f63bf631"


def test_another_version_of_the_engine_has_other_fingerprints(monkeypatch):
    before = fingerprint("m", None, "float32")
    monkeypatch.setattr(weights, "ENGINE_VERSION", weights.ENGINE_VERSION + 1)
    assert fingerprint("m", None, "float32") != before


def test_files_that_nothing_loads_do_not_change_a_model_s_digest(tiny_model, model):
    for name in ("unet/diffusion_pytorch_model.non_ema.safetensors", "safety_checker/model.bin"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"other weights")
    assert digest_model(model) == digest_model(tiny_model) == digest_folder(tiny_model)


@pytest.mark.parametrize("name", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_what_is_loaded_is_part_of_a_model_s_digest(tiny_model, model, name):
    (model / name).write_bytes((model / name).read_bytes() + b" ")
    assert digest_model(model) != digest_model(tiny_model)


@pytest.fixture
def erased(tiny_model, tmp_path):
    """Other weights for the U-Net, as ESD's script writes them."""
    tensors = load_img2img(tiny_model, "float32").unet.state_dict()
    path = tmp_path / "diffusers-word_crow.pt"
    torch.save({name: tensor + 0.01 for name, tensor in tensors.items()}, path)
    return path


def test_other_weights_replace_those_of_the_unet_and_nothing_else(tiny_model, erased):
    check_weights(tiny_model, unet=locate_unet(erased))
    plain = load_img2img(tiny_model, "float32")
    replaced = load_img2img(tiny_model, "float32", unet=erased)
    for name, tensor in replaced.unet.state_dict().items():
        torch.testing.assert_close(tensor, plain.unet.state_dict()[name] + 0.01)
    for name, tensor in replaced.vae.state_dict().items():
        torch.testing.assert_close(tensor, plain.vae.state_dict()[name])


def test_weights_of_the_unet_count_by_their_content(tiny_model, erased, tmp_path):
    copy = shutil.copy(erased, tmp_path / "copy.pt")
    found = digest_model(tiny_model, erased)
    assert found == digest_model(tiny_model, Path(copy)) != digest_model(tiny_model)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_network_are_refused_by_the_first_that_differs(
    tiny_model, tmp_path, suffix
):
    path, tensors = tmp_path / f"other{suffix}", {"conv_in.bias": torch.zeros(3)}
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    rule = "generation.unet must hold the weights of the U-Net of .* got conv_in.bias with shape"
    for use in (lambda: check_weights(tiny_model, unet=path), lambda: read_unet(path, tiny_model)):
        with pytest.raises(UserError, match=rule):
            use()


@pytest.mark.parametrize(
    ("name", "said"), [("none.pt", "which is missing"), ("unet.txt", "which is another file")]
)
def test_a_file_of_weights_that_is_none_is_refused(tmp_path, name, said):
    (tmp_path / "unet.txt").write_text("no tensors")
    with pytest.raises(UserError, match=rf"generation\.unet must be a file of tensors .* {said}"):
        locate_unet(tmp_path / name)


def test_a_damaged_file_of_weights_is_refused(tiny_model, tmp_path):
    path = tmp_path / "unet.safetensors"
    path.write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"generation\.unet must have whole weight files, got "):
        check_weights(tiny_model, unet=path)
