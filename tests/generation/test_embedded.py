"""The diffusion models that come with the package, with stock diffusers."""

import json

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInstructPix2PixPipeline

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.directory import EMBEDDED, kind_of, locate_model

PIPELINES = {
    "image_to_image": StableDiffusionImg2ImgPipeline,
    "instruct": StableDiffusionInstructPix2PixPipeline,
}


@pytest.fixture(scope="module", params=EMBEDDED)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipelines():
    """Load both as stock diffusers does."""
    loaded = {
        kind: PIPELINES[kind].from_pretrained(folder, local_files_only=True)
        for kind, folder in EMBEDDED.items()
    }
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


def test_the_configuration_s_default_is_an_embedded_model_of_the_wanted_kind(kind):
    assert locate_model(GenerationConfig(), kind) == EMBEDDED[kind]
    assert kind_of(EMBEDDED[kind]) == kind


@pytest.mark.slow
def test_stock_diffusers_loads_it_and_makes_an_image(kind, pipelines):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    own = {"strength": 0.75} if kind == "image_to_image" else {"image_guidance_scale": 1.5}
    made = pipelines[kind](
        "a photo of a digit", image=image, num_inference_steps=4, output_type="pt", **own
    )
    assert made.images.shape == (1, 3, 64, 64)
    assert made.images.isfinite().all()


@pytest.mark.slow
def test_the_model_draws_something_from_pure_noise(pipelines):
    image = torch.zeros(1, 3, 64, 64)
    rng = torch.Generator().manual_seed(0)
    made = pipelines["image_to_image"](
        "a photo of a digit",
        image=image,
        num_inference_steps=10,
        strength=1.0,
        generator=rng,
        output_type="pt",
    )
    assert float(made.images.std()) > 0.05


def test_each_model_takes_at_most_eight_megabytes(kind):
    files = (path for path in EMBEDDED[kind].rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) <= 8e6


def test_the_weights_are_safetensors(kind):
    files = list(EMBEDDED[kind].rglob("*"))
    assert [path for path in files if path.suffix == ".safetensors"]
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt"}]


def test_the_scheduler_does_not_clip_latents(kind):
    path = EMBEDDED[kind] / "scheduler" / "scheduler_config.json"
    assert json.loads(path.read_text())["clip_sample"] is False
