"""An autoencoder in place of a model's own: diffusers' pixels, or one clear line."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from request_samples import make_request
from stock_diffusers import assert_same_pixels, stock
from tiny_model import copy_with, write_tiny_vae

from online_aug.config.generation import GenerationConfig
from online_aug.diffusion.directory import check_weights, locate_vae
from online_aug.diffusion.loading import load_pipeline
from online_aug.errors import UserError
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.solvers import SOLVERS
from online_aug.generation.vae import Autoencoder

STRENGTHS = (0.5, 1.0, 0.3)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return write_tiny_vae(tmp_path_factory.mktemp("models") / "taesd")


@pytest.fixture(scope="module")
def generator(tiny_model, vae):
    return generator_of(tiny_model, vae)


def generator_of(model, vae):
    config = GenerationConfig(slots=3, vae=str(vae))
    return ImageGenerator.load(model, None, config, "float32", "cpu")


def pictures(count):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, 64, 64), generator=rng).to(torch.uint8)


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_images_are_those_of_diffusers_pipeline_with_the_same_autoencoder(
    tiny_model, vae, generator, scheduler
):
    requests = [
        make_request(scheduler=scheduler, strength=strength, num_inference_steps=6, noise_seed=n)
        for n, strength in enumerate(STRENGTHS)
    ]
    images = pictures(len(requests))
    made = generator.generate(requests, images)
    for request, image, result in zip(requests, images, made, strict=True):
        kind, start = StableDiffusionImg2ImgPipeline, image.unsqueeze(0) / 255
        own = {"image": start, "strength": request.strength}
        assert_same_pixels(result, stock(kind, tiny_model, request, vae, **own))


def test_edits_are_those_of_diffusers_pipeline_with_the_same_autoencoder(tiny_editor, vae):
    request = make_request(
        scheduler="euler_ancestral", strength=1.0, image_guidance_scale=1.5, num_inference_steps=4
    )
    image = pictures(1)
    made = generator_of(tiny_editor, vae).generate([request], image)[0]
    kind, own = StableDiffusionInstructPix2PixPipeline, {"image": image / 255}
    expected = stock(kind, tiny_editor, request, vae, image_guidance_scale=1.5, **own)
    assert_same_pixels(made, expected)


def test_its_own_scaling_counts(tiny_model, generator, tmp_path):
    scaled = write_tiny_vae(tmp_path / "scaled", scaling_factor=0.5)
    request = make_request(strength=0.5, num_inference_steps=4)
    image = pictures(1)
    made = generator_of(tiny_model, scaled).generate([request], image)[0]
    own = {"image": image / 255, "strength": 0.5}
    expected = stock(StableDiffusionImg2ImgPipeline, tiny_model, request, scaled, **own)
    assert_same_pixels(made, expected)
    assert (made - generator.generate([request], image)[0]).abs().max() > 0.01


def test_its_latents_are_kept_and_do_not_depend_on_company(vae):
    autoencoder, images = Autoencoder(AutoencoderTiny.from_pretrained(vae)), pictures(3)
    together = autoencoder.encode(images)
    alone = Autoencoder(AutoencoderTiny.from_pretrained(vae)).encode(images[2:])
    assert autoencoder.encode(images[:1])[0].mean is together[0].mean
    torch.testing.assert_close(alone[0].mean, together[2].mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_it_is_loaded_in_the_number_format_of_the_rest(tiny_model, vae, dtype):
    pipeline = load_pipeline(tiny_model, dtype, "image_to_image", vae)
    assert pipeline.vae.dtype == pipeline.unet.dtype


def test_a_model_keeps_its_own_where_none_is_named(tiny_model):
    assert locate_vae(None, tiny_model) is None


def refused(name, model):
    with pytest.raises(UserError) as caught:
        locate_vae(str(name), model)
    message = str(caught.value)
    assert message.startswith("generation.vae must ")
    assert "\n" not in message
    return message


def test_an_autoencoder_of_another_class_is_one_clear_line(tiny_model):
    message = refused(tiny_model / "vae", tiny_model)
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
def test_latents_that_are_not_the_model_s_are_one_clear_line(tiny_model, tmp_path, changes, said):
    message = refused(write_tiny_vae(tmp_path / "vae", **changes), tiny_model)
    assert "the model's latents (4 channels, a cell of 4 px), got " in message
    assert message.endswith(said)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"_class_name": "AutoencoderTiny"}', "\0"])
def test_settings_that_cannot_be_read_are_one_clear_line(tiny_model, tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert f"cannot read {tmp_path / 'config.json'}: " in refused(tmp_path, tiny_model)


def test_settings_without_their_blocks_are_one_clear_line(tiny_model, vae, tmp_path):
    folder = copy_with(vae, tmp_path / "vae")
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if "block" not in k}))
    refused(folder, tiny_model)


@pytest.mark.parametrize("name", ["nobody/nothing-of-this-name", "no such thing"])
def test_a_hub_name_that_cannot_be_reached_is_one_clear_line(name, monkeypatch, tiny_model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(name, tiny_model)
    assert "a directory with diffusers' AutoencoderTiny, or a hub name that can be " in message
    assert repr(name) in message


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_of_weights_that_ends_early_is_named(tiny_model, vae, tmp_path, kept):
    folder = copy_with(vae, tmp_path / "vae")
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=rf"^generation\.vae must have whole weight files, got {path} "
    ):
        check_weights(tiny_model, folder)


def test_weights_of_another_network_are_one_clear_line(tiny_model, vae, tmp_path):
    wider = copy_with(vae, tmp_path / "wider")
    path = wider / "config.json"
    settings = json.loads(path.read_text()) | {"num_decoder_blocks": [1, 2, 1]}
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"^generation\.vae {wider} cannot be loaded: ") as caught:
        load_pipeline(tiny_model, "float32", "image_to_image", wider)
    assert "\n" not in str(caught.value)


def test_a_request_s_image_changes_with_the_autoencoder(tiny_model, generator):
    request, image = make_request(strength=0.5, num_inference_steps=4), pictures(1)
    own = ImageGenerator.load(tiny_model, None, GenerationConfig(slots=3), "float32", "cpu")
    made = generator.generate([request], image)[0]
    assert (own.generate([request], image)[0] - made).abs().max() > 0.01
