"""A model is loaded in the wanted number format, or refused in one clear line."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from diffusers.utils import logging as diffusers_logging
from request_samples import make_request
from safetensors.torch import load_file, save_file
from stock_diffusers import assert_same_pixels, stock
from tiny_model import copy_with, write_tiny_vae
from transformers.utils import logging as transformers_logging

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.adapters import Adapters
from online_aug.diffusion.loading import (
    load_adapters,
    load_img2img,
    load_pipeline,
    training_scheduler,
)
from online_aug.diffusion.weights import check_weights
from online_aug.errors import UserError
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.solvers import SOLVERS, sampling_scheduler
from online_aug.generation.vae import Autoencoder


def trained_with(prediction="epsilon"):
    """The noise schedule in the directory of a model."""
    return dict(
        DDIMScheduler(beta_start=0.001, clip_sample=True, prediction_type=prediction).config
    )


PREDICTIONS = ["epsilon", "v_prediction"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_loads_in_the_wanted_number_format(tiny_model, dtype):
    pipeline = load_img2img(tiny_model, dtype)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert part.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_clips_latents_whatever_the_directory_says(name):
    # A network that always finds the same clean latents, far outside of [-1, 1].
    scheduler = sampling_scheduler(name, trained_with())
    scheduler.set_timesteps(4)
    latents = torch.full((1, 4, 2, 2), 5.0) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[int(time)]
        noisy = scheduler.scale_model_input(latents, time)
        noise = (noisy - alpha.sqrt() * 5.0) / (1 - alpha).sqrt()
        latents = scheduler.step(noise, time, latents).prev_sample
    assert latents.mean() == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_keeps_noise_levels_and_target_of_the_training(name, prediction):
    known = trained_with(prediction)
    for scheduler in (sampling_scheduler(name, known), training_scheduler(known)):
        assert scheduler.config.prediction_type == prediction
        expected = DDIMScheduler.from_config(known).alphas_cumprod
        torch.testing.assert_close(scheduler.alphas_cumprod, expected)


def test_a_configured_name_chooses_the_solver_of_diffusers():
    assert type(sampling_scheduler("ddim", trained_with())) is DDIMScheduler
    solver = sampling_scheduler("dpmsolver++", trained_with())
    assert type(solver) is DPMSolverMultistepScheduler
    assert solver.config.algorithm_type == "dpmsolver++"


def one_line(folder):
    with pytest.raises(UserError) as caught:
        load_img2img(folder, "float32")
    message = str(caught.value)
    assert message.startswith("generation.model ")
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_an_empty_directory_is_one_clear_line(tmp_path):
    assert "model_index.json" in one_line(tmp_path)


def test_a_directory_without_its_weights_is_one_clear_line(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "model")
    for path in (model / "unet").glob("*.safetensors"):
        path.unlink()
    one_line(model)


def test_damaged_weights_are_one_clear_line(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "model")
    (path,) = (model / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    one_line(model)


def test_weights_of_another_shape_are_one_clear_line(tiny_model, tmp_path):
    one_line(copy_with(tiny_model, tmp_path / "model", "unet", cross_attention_dim=64))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_renamed_weight_is_one_clear_line_that_names_it(tiny_model, tmp_path, part):
    model = copy_with(tiny_model, tmp_path / "model")
    (path,) = (model / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[3]
    save_file({key + "x" * (key == name): tensors[key] for key in tensors}, path)
    message = one_line(model)
    assert f"{model / part} cannot be loaded: its files lack the weight " in message
    assert message.endswith(name.removeprefix("text_model."))


def test_a_directory_with_half_precision_files_alone_is_loaded(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "model")
    for part in ("unet", "vae", "text_encoder"):
        (path,) = (model / part).glob("*.safetensors")
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path.with_name(f"{path.stem}.fp16.safetensors"))
        path.unlink()
    check_weights(model)
    made, plain = (load_img2img(folder, "float32").unet for folder in (model, tiny_model))
    torch.testing.assert_close(made.conv_in.weight, plain.conv_in.weight, rtol=1e-3, atol=1e-3)


def test_loading_says_nothing_that_a_user_could_not_act_on(tiny_model, capfd):
    pipeline = load_img2img(tiny_model, "float32")
    width = pipeline.text_encoder.config.hidden_size
    load_adapters(pipeline, Adapters({"<emu>": torch.zeros(1, width)}, None))
    assert capfd.readouterr() == ("", "")


def spoil(folder, value):
    """Put a value into the first weight of a part and return the name of the weight."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    name, tensor = next(iter(tensors.items()))
    tensor.view(-1)[-1] = value
    save_file(tensors, path)
    return name


@pytest.mark.parametrize(
    ("part", "value", "dtype"),
    [
        ("unet", float("nan"), "float32"),
        ("vae", float("inf"), "float32"),
        ("text_encoder", 1e6, "float16"),
    ],
)
def test_weights_that_are_not_finite_are_one_clear_line(tiny_model, tmp_path, part, value, dtype):
    model = copy_with(tiny_model, tmp_path / "model")
    name = spoil(model / part, value)
    with pytest.raises(UserError) as caught:
        load_img2img(model, dtype)
    assert str(caught.value) == (
        f"generation.model must have finite weights in {dtype}, got NaN or infinity in {part} "
        f"{name} of {model}: fetch or copy it again, or choose another generation.dtype"
    )


def test_adapters_that_spoil_a_model_are_one_clear_line(tiny_model):
    pipeline = load_img2img(tiny_model, "float32")
    width = pipeline.text_encoder.config.hidden_size
    tokens = {"<emu>": torch.full((1, width), float("nan"))}
    with pytest.raises(UserError, match=r"^finetune\.path must hold adapters that leave .* finite"):
        load_adapters(pipeline, Adapters(tokens, None))


def test_a_pipeline_of_another_kind_is_one_clear_line(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    for part in ("unet", "vae"):
        del index[part]
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "DDPMPipeline"}))
    one_line(model)


def generator_of(model, vae):
    config = GenerationConfig(slots=2, resolution=64, execution="eager", vae=str(vae))
    return ImageGenerator.load(model, None, config, "float32", "cpu")


def noise_images(count):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, 64, 64), generator=rng).to(torch.uint8)


@pytest.mark.slow
def test_images_are_those_of_diffusers_pipeline_with_the_same_autoencoder(tiny_model, tiny_vae):
    generator = generator_of(tiny_model, tiny_vae)
    requests = [
        make_request(scheduler="dpmsolver++", strength=strength, num_inference_steps=4)
        for strength in (0.5, 1.0)
    ]
    images = noise_images(len(requests))
    made = generator.generate(requests, images)
    for request, image, result in zip(requests, images, made, strict=True):
        kind, start = StableDiffusionImg2ImgPipeline, image.unsqueeze(0) / 255
        own = {"image": start, "strength": request.strength}
        assert_same_pixels(result, stock(kind, tiny_model, request, tiny_vae, **own))


@pytest.mark.slow
def test_edits_are_those_of_diffusers_pipeline_with_the_same_autoencoder(tiny_editor, tiny_vae):
    request = make_request(
        scheduler="euler_ancestral", strength=1.0, image_guidance_scale=1.5, num_inference_steps=4
    )
    image = noise_images(1)
    made = generator_of(tiny_editor, tiny_vae).generate([request], image)[0]
    kind, own = StableDiffusionInstructPix2PixPipeline, {"image": image / 255}
    expected = stock(kind, tiny_editor, request, tiny_vae, image_guidance_scale=1.5, **own)
    assert_same_pixels(made, expected)


@pytest.mark.slow
def test_a_replaced_autoencoder_scales_by_its_own_factor(tiny_model, tmp_path):
    scaled = write_tiny_vae(tmp_path / "scaled", scaling_factor=0.5)
    request = make_request(strength=0.5, num_inference_steps=4)
    image = noise_images(1)
    made = generator_of(tiny_model, scaled).generate([request], image)[0]
    own = {"image": image / 255, "strength": 0.5}
    expected = stock(StableDiffusionImg2ImgPipeline, tiny_model, request, scaled, **own)
    assert_same_pixels(made, expected)


def test_latents_are_kept_and_do_not_depend_on_the_batch(tiny_vae):
    autoencoder, images = Autoencoder(AutoencoderTiny.from_pretrained(tiny_vae)), noise_images(3)
    together = autoencoder.encode(images)
    alone = Autoencoder(AutoencoderTiny.from_pretrained(tiny_vae)).encode(images[2:])
    assert autoencoder.encode(images[:1])[0].mean is together[0].mean
    torch.testing.assert_close(alone[0].mean, together[2].mean, rtol=0, atol=1e-5)


def test_a_replaced_autoencoder_has_the_number_format_of_the_rest(tiny_model, tiny_vae):
    pipeline = load_pipeline(tiny_model, "bfloat16", "image_to_image", tiny_vae)
    assert pipeline.vae.dtype == pipeline.unet.dtype


def test_an_autoencoder_s_weights_of_another_network_are_one_clear_line(
    tiny_model, tiny_vae, tmp_path
):
    wider = copy_with(tiny_vae, tmp_path / "wider")
    path = wider / "config.json"
    settings = json.loads(path.read_text()) | {"num_decoder_blocks": [1, 2, 1]}
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"^generation\.vae {wider} cannot be loaded: ") as caught:
        load_pipeline(tiny_model, "float32", "image_to_image", wider)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_importing_the_libraries_says_nothing():
    code = "import online_aug.diffusion.loading, online_aug.generation.engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_loading_leaves_the_progress_bars_of_the_libraries_as_they_were(tiny_model):
    loggers = (diffusers_logging, transformers_logging)
    assert all(each.is_progress_bar_enabled() for each in loggers)
    load_img2img(tiny_model, "float32")
    assert all(each.is_progress_bar_enabled() for each in loggers)
