import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from tiny_model import copy_with

from online_aug.diffusion.adapters import Adapters, load_adapters
from online_aug.diffusion.loading import choose_attention, load_img2img, training_scheduler
from online_aug.errors import UserError
from online_aug.generation.solvers import SOLVERS, sampling_scheduler


def trained_with(prediction="epsilon"):
    """What the directory of a model says of its noise schedule."""
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


def test_solvers_are_named_as_the_configuration_names_them():
    assert type(sampling_scheduler("ddim", trained_with())) is DDIMScheduler
    solver = sampling_scheduler("dpmsolver++", trained_with())
    assert type(solver) is DPMSolverMultistepScheduler
    assert solver.config.algorithm_type == "dpmsolver++"


def one_line(folder):
    with pytest.raises(UserError) as caught:
        load_img2img(folder, "float32")
    message = str(caught.value)
    assert message.startswith(f"generation.model {folder} cannot be loaded: ")
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


def spoil(folder, value):
    """Put a value into the first weight of a part; its name."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    name, tensor = next(iter(tensors.items()))
    tensor.view(-1)[-1] = value
    save_file(tensors, path)
    return name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), "float32"), (float("inf"), "float32"), (1e6, "float16")]
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


def test_auto_attention_is_pytorch_s_on_a_cpu(tiny_model):
    pipeline = load_img2img(tiny_model, "float32")
    for name in ("auto", "sdpa"):
        assert choose_attention(name, pipeline, torch.device("cpu")) == "sdpa"


def test_xformers_on_a_cpu_is_one_clear_line(tiny_model):
    pipeline = load_img2img(tiny_model, "float32")
    with pytest.raises(UserError) as caught:
        choose_attention("xformers", pipeline, torch.device("cpu"))
    message = str(caught.value)
    assert message.startswith("generation.attention must be auto or sdpa on cpu, got 'xformers' (")
    assert "\n" not in message
