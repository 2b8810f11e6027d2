"""Model directories are found, told apart and fetched, or refused in one clear line."""

import json

import pytest
from tiny_model import copy_with, write_tiny_vae

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.directory import fetch, locate_model, locate_vae
from online_aug.errors import UserError


@pytest.fixture
def model(tiny_model, tmp_path):
    return copy_with(tiny_model, tmp_path / "model")


def test_a_model_directory_is_found(tiny_model):
    assert locate_model(GenerationConfig(model=str(tiny_model)), "image_to_image") == tiny_model


def test_a_directory_that_is_no_model_is_one_clear_line(tmp_path):
    with pytest.raises(UserError) as caught:
        locate_model(GenerationConfig(model=str(tmp_path)), "image_to_image")
    assert str(caught.value) == (
        "generation.model must be a diffusers model directory (with model_index.json), "
        f"got '{tmp_path}'"
    )


@pytest.mark.parametrize("name", ["nobody/nothing-of-this-name", "no such thing"])
def test_a_hub_name_that_cannot_be_reached_is_one_clear_line(name, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        locate_model(GenerationConfig(model=name), "instruct")
    message = str(caught.value)
    assert message.startswith("generation.model must be 'embedded', a diffusers model directory,")
    assert repr(name) in message
    assert "then give that directory" in message or message.endswith("no directory here")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_a_text_to_image_model_cannot_edit_and_says_so(tiny_model):
    with pytest.raises(UserError) as caught:
        locate_model(GenerationConfig(model=str(tiny_model)), "instruct")
    assert str(caught.value) == (
        "generation.model must be an InstructPix2Pix for method.name diffusemix, "
        f"got {tiny_model}, which is a text-to-image model"
    )


def test_an_editor_makes_no_image_from_a_caption_and_says_so(tiny_editor):
    with pytest.raises(UserError) as caught:
        locate_model(GenerationConfig(model=str(tiny_editor)), "image_to_image")
    assert str(caught.value) == (
        f"generation.model must be a text-to-image model for this method, got {tiny_editor}, "
        "which is an InstructPix2Pix"
    )


def test_a_model_of_neither_kind_says_how_many_channels_its_u_net_takes(tiny_model, tmp_path):
    inpainting = copy_with(tiny_model, tmp_path / "inpainting", "unet", in_channels=9)
    with pytest.raises(UserError, match=r"whose U-Net takes 9 channels for 4 of the latents$"):
        locate_model(GenerationConfig(model=str(inpainting)), "image_to_image")


def test_a_model_without_settings_of_its_u_net_is_one_clear_line(model):
    (model / "unet" / "config.json").unlink()
    with pytest.raises(
        UserError,
        match=r"must have a readable .*unet/config\.json: No such file",
    ):
        locate_model(GenerationConfig(model=str(model)), "image_to_image")


RULE = "generation.model must be a directory, or a hub name that can be reached, got "


def fetch_error(name, download):
    with pytest.raises(UserError) as caught:
        fetch("generation.model", "a directory", name, download)
    return str(caught.value)


def unreachable():
    try:
        raise OSError(-2, "Name or service not known")
    except OSError as error:
        raise ValueError("not cached.\nSee the stack trace above") from error


def test_a_downloaded_model_is_returned(tmp_path):
    assert fetch("generation.model", "a directory", "a/b", lambda: str(tmp_path)) == tmp_path


def test_a_failed_download_names_its_first_cause_and_a_way_out():
    assert fetch_error("them/sd-1.5", unreachable) == (
        f"{RULE}'them/sd-1.5' ([Errno -2] Name or service not known): where there is a network, "
        "hf download them/sd-1.5 --local-dir DIR fetches it; then give that directory"
    )


def test_a_network_that_times_out_is_one_clear_line():
    class Timeout(Exception):
        """An error of a network library, no `OSError`."""

    def time_out():
        raise Timeout("timed out")

    assert fetch_error("sd", time_out).startswith(f"{RULE}'sd' (timed out): ")


@pytest.mark.parametrize(
    "name", ["/data/model", "./model", "../model", "~/model", "a/b/c", "model/", "", "a b"]
)
def test_a_value_that_cannot_be_a_hub_name_is_not_looked_up(name):
    assert fetch_error(name, None) == f"{RULE}{name!r}, which is no directory here"


def test_an_autoencoder_by_a_hub_name_that_cannot_be_reached_is_one_clear_line(
    monkeypatch, tiny_model
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = vae_error("nobody/nothing-of-this-name", tiny_model)
    assert "a directory with diffusers' AutoencoderTiny, or a hub name that can be " in message


def vae_error(name, model):
    with pytest.raises(UserError) as caught:
        locate_vae(str(name), model)
    message = str(caught.value)
    assert message.startswith("generation.vae must ")
    assert "\n" not in message
    return message


def test_a_model_keeps_its_own_autoencoder_unless_one_is_named(tiny_model):
    assert locate_vae(None, tiny_model) is None


def test_an_autoencoder_of_another_class_is_one_clear_line(tiny_model):
    message = vae_error(tiny_model / "vae", tiny_model)
    assert message == (
        "generation.vae must be a directory with diffusers' AutoencoderTiny, got "
        f"{tiny_model / 'vae'}, which holds AutoencoderKL"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latent_channels": 16}, r"(16 channels, a cell of 4 px)"),
        ({"levels": 4}, r"(4 channels, a cell of 8 px)"),
        (
            {"decoder_block_out_channels": (8, 8), "num_decoder_blocks": (1, 1)},
            "(4 channels, a cell of 4 encoded, 2 decoded px)",
        ),
    ],
)
def test_latents_of_another_shape_are_one_clear_line(tiny_model, tmp_path, changes, said):
    message = vae_error(write_tiny_vae(tmp_path / "vae", **changes), tiny_model)
    assert "the model's latents (4 channels, a cell of 4 px), got " in message
    assert message.endswith(said)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"_class_name": "AutoencoderTiny"}', "\0"])
def test_autoencoder_settings_that_cannot_be_read_are_one_clear_line(tiny_model, tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert f"cannot read {tmp_path / 'config.json'}: " in vae_error(tmp_path, tiny_model)


def test_autoencoder_settings_without_blocks_are_one_clear_line(tiny_model, tiny_vae, tmp_path):
    folder = copy_with(tiny_vae, tmp_path / "vae")
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if "block" not in k}))
    vae_error(folder, tiny_model)


FAMILIES = {
    "StableDiffusionXLPipeline": {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    },
    "StableDiffusion3Pipeline": {
        "unet": None,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
    },
    "FluxPipeline": {"unet": None, "transformer": ["diffusers", "FluxTransformer2DModel"]},
    "PixArtSigmaPipeline": {
        "unet": None,
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "text_encoder": ["transformers", "T5EncoderModel"],
    },
    "StableDiffusionControlNetPipeline": {"controlnet": ["diffusers", "ControlNetModel"]},
}


def with_index(model, **changes):
    path = model / "model_index.json"
    kept = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}))
    return model


def refused(model):
    with pytest.raises(UserError) as caught:
        locate_model(GenerationConfig(model=str(model)), "image_to_image")
    message = str(caught.value)
    assert message.startswith("generation.model must ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_another_family_is_named(model, family):
    message = refused(with_index(model, _class_name=family, **FAMILIES[family]))
    assert f"a {family} with " in message
    assert message.endswith("which cannot be run yet")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("addition_embed_type", "text_time"),
        ("class_embed_type", "projection"),
        ("encoder_hid_dim_type", "text_proj"),
        ("attention_type", "gated"),
    ],
)
def test_a_u_net_that_wants_more_inputs_is_refused_by_the_setting(
    tiny_model, tmp_path, name, value
):
    message = refused(copy_with(tiny_model, tmp_path / "other", "unet", **{name: value}))
    assert f"whose U-Net has no {name}, got {value!r} in " in message


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("unet", ["builtins", "dict"]),
        ("unet", ["my_model", "UNet2DConditionModel"]),
        ("vae", ["diffusers", "DummyModel"]),
        ("vae", "AutoencoderKL"),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("text_encoder", ["diffusers", "CLIPTextModel"]),
        ("tokenizer", [None, None]),
        ("tokenizer", {"a": 1}),
        ("scheduler", ["os", "system"]),
        ("scheduler", ["diffusers", "AutoencoderKL"]),
        ("scheduler", 7),
    ],
)
def test_a_part_of_another_class_is_never_loaded(model, part, value):
    message = refused(with_index(model, **{part: value}))
    assert f"whose {part} is " in message
    assert f"got {value!r} in {model / 'model_index.json'}" in message


SPOILT = {
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "empty": b"",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "digits": b'{"in_channels": ' + b"9" * 100_000 + b"}",
    "binary": bytes(range(256)),
}
FILES = ("model_index.json", "unet/config.json", "vae/config.json")


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", FILES)
def test_a_spoilt_file_of_settings_is_named(model, name, kind):
    (model / name).write_bytes(SPOILT[kind])
    assert f"must have a readable {model / name}: " in refused(model)


@pytest.mark.parametrize("value", ["four", [4], None, True, 4.5])
def test_a_number_of_another_type_is_named(model, value):
    path = model / "vae" / "config.json"
    path.write_text(json.dumps({"latent_channels": value, "sample_size": "x"}))
    assert "must have " in refused(model)


def test_parts_that_are_not_used_need_no_folders(model):
    listed = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    listed["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    with_index(model, **listed)
    assert locate_model(GenerationConfig(model=str(model)), "image_to_image") == model


@pytest.mark.parametrize("name", ["models/x.safetensors", "v1-5.ckpt", "/data/x.SAFETENSORS"])
def test_a_whole_model_in_one_file_is_told_how_to_become_a_directory(name, tiny_model):
    message = refused(name)
    assert f"got the single file {name!r}: convert it with diffusers" in message
    assert "got the single file" in vae_error(name, tiny_model)
