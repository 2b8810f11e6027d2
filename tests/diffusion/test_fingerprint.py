import shutil

import pytest
from tiny_model import copy_with

from online_aug.config.generation import FinetuneConfig, GenerationConfig
from online_aug.diffusion import fingerprint as fingerprint_module
from online_aug.diffusion.fingerprint import (
    choose_dtype,
    digest_folder,
    finetuned_folder,
    fingerprint,
    locate,
)
from online_aug.errors import UserError

EXAMPLES = [("a" * 32, 0), ("b" * 32, 1)]
SETTINGS = [64, 0.5, "a photo of a <class_0>"]


@pytest.fixture
def model(tiny_model, tmp_path):
    return copy_with(tiny_model, tmp_path / "model")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def place(model_digest="m", examples=EXAMPLES, settings=SETTINGS, **changes):
    return finetuned_folder(FinetuneConfig(**changes), model_digest, examples, settings)


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


def test_a_fingerprint_tells_weights_adapters_and_number_format_apart():
    made = [
        fingerprint("m", None, "float32"),
        fingerprint("n", None, "float32"),
        fingerprint("m", None, "float16"),
        fingerprint("m", "one", "float32"),
        fingerprint("m", "other", "float32"),
    ]
    assert len(set(made)) == len(made)


def test_a_replaced_autoencoder_is_told_apart_and_none_changes_nothing():
    made = [fingerprint("m", None, "float32", vae) for vae in (None, "v", "w")]
    assert len(set(made)) == 3
    assert made[0] == fingerprint("m", None, "float32") == "5b9ec10f1c625a206877a165f63bf631"


def test_another_version_of_the_engine_makes_other_fingerprints(monkeypatch):
    before = fingerprint("m", None, "float32")
    monkeypatch.setattr(fingerprint_module, "ENGINE_VERSION", fingerprint_module.ENGINE_VERSION + 1)
    assert fingerprint("m", None, "float32") != before


def test_a_fine_tuning_result_lies_in_its_folder_by_a_digest(tmp_path):
    assert place(path=tmp_path).parent == tmp_path
    assert place(path=tmp_path) == place(path=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": "n"},
        {"examples": EXAMPLES[:1]},
        {"examples": [("a" * 32, 0), ("b" * 32, 0)]},
        {"settings": [128, 0.5, "a photo of a <class_0>"]},
        {"settings": [64, 0.5, "a photo of a <class_0> bird"]},
        {"steps": 7},
        {"batch_size": 3},
        {"lr": 1e-3},
        {"token_lr": 1e-3},
        {"rank": 3},
        {"seed": 1},
        {"mode": "lora"},
        {"mode": "staged"},
        {"mode": "textual_inversion"},
        {"mode": "staged", "token_steps": 5},
        {"class_balance": 1.0},
        {"min_snr_gamma": 5.0},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
    ],
)
def test_whatever_decides_a_result_decides_its_folder(changes):
    assert place(**changes) != place()


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": EXAMPLES[::-1]},
        {"enabled": False},
        {"gradient_checkpointing": True},
        {"checkpoint_steps": 7},
        {"validation_steps": 7},
    ],
)
def test_what_does_not_decide_a_result_keeps_its_folder(changes):
    assert place(**changes) == place()


def test_class_runs_have_a_folder_of_their_own():
    inversion = {"mode": "textual_inversion"}
    assert place(**inversion, per_class=True) != place(**inversion)


def test_a_result_of_an_older_version_is_found_again(tmp_path):
    assert place(path=tmp_path) == tmp_path / "4cec2a2db02af234133b0cdd"


def test_auto_is_single_precision_on_a_cpu_and_half_on_a_gpu():
    assert choose_dtype("auto", "cpu") == "float32"
    assert choose_dtype("auto", "cuda:1") == "float16"
    assert choose_dtype("bfloat16", "cpu") == "bfloat16"


def test_a_model_directory_is_found(tiny_model):
    assert locate(GenerationConfig(model=str(tiny_model)), "image_to_image") == tiny_model


def test_a_directory_that_is_no_model_is_one_clear_line(tmp_path):
    with pytest.raises(UserError) as caught:
        locate(GenerationConfig(model=str(tmp_path)), "image_to_image")
    assert str(caught.value) == (
        "generation.model must be a diffusers model directory (with model_index.json), "
        f"got '{tmp_path}'"
    )


@pytest.mark.parametrize("name", ["nobody/nothing-of-this-name", "no such thing"])
def test_a_hub_name_that_cannot_be_reached_is_one_clear_line(name, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        locate(GenerationConfig(model=name), "instruct")
    message = str(caught.value)
    assert message.startswith("generation.model must be 'embedded', a diffusers model directory,")
    assert repr(name) in message
    assert "then give that directory" in message or message.endswith("no directory here")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_a_text_to_image_model_cannot_edit_and_says_so(tiny_model):
    with pytest.raises(UserError) as caught:
        locate(GenerationConfig(model=str(tiny_model)), "instruct")
    assert str(caught.value) == (
        "generation.model must be an InstructPix2Pix for method.name diffusemix, "
        f"got {tiny_model}, which is a text-to-image model"
    )


def test_an_editor_makes_no_image_from_a_caption_and_says_so(tiny_editor):
    with pytest.raises(UserError) as caught:
        locate(GenerationConfig(model=str(tiny_editor)), "image_to_image")
    assert str(caught.value) == (
        f"generation.model must be a text-to-image model for this method, got {tiny_editor}, "
        "which is an InstructPix2Pix"
    )


def test_a_model_that_is_neither_says_what_its_network_takes(tiny_model, tmp_path):
    inpainting = copy_with(tiny_model, tmp_path / "inpainting", "unet", in_channels=9)
    with pytest.raises(UserError, match=r"whose U-Net takes 9 channels for 4 of the latents$"):
        locate(GenerationConfig(model=str(inpainting)), "image_to_image")


def test_a_directory_without_settings_of_its_network_is_one_clear_line(model):
    (model / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"^generation\.model .* cannot be loaded: FileNotFound"):
        locate(GenerationConfig(model=str(model)), "image_to_image")


def test_a_digest_is_not_of_what_lies_beside(tiny_model, model):
    shutil.copytree(model / "unet", model.parent / "beside")
    assert digest_folder(model) == digest_folder(tiny_model)
