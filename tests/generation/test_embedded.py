"""The diffusion model that comes with the package."""

import json

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from online_aug.config import GenerationConfig
from online_aug.generation.identity import EMBEDDED, locate


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionImg2ImgPipeline.from_pretrained(EMBEDDED, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_configuration_s_default_is_the_embedded_model():
    assert locate(GenerationConfig()) == EMBEDDED
    assert (EMBEDDED / "model_index.json").is_file()


def test_stock_diffusers_loads_it_and_makes_an_image(pipeline):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = pipeline(
        "a photo of a digit", image=image, num_inference_steps=4, strength=0.75, output_type="pt"
    )
    assert made.images.shape == (1, 3, 64, 64)
    assert made.images.isfinite().all()


def test_it_draws_something_from_pure_noise(pipeline):
    image = torch.zeros(1, 3, 64, 64)
    rng = torch.Generator().manual_seed(0)
    made = pipeline(
        "a photo of a digit",
        image=image,
        num_inference_steps=10,
        strength=1.0,
        generator=rng,
        output_type="pt",
    )
    assert float(made.images.std()) > 0.05


def test_it_takes_at_most_eight_megabytes():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 8e6


def test_its_weights_are_safetensors():
    assert list(EMBEDDED.rglob("*.safetensors"))
    assert not [path for path in EMBEDDED.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt"}]


def test_its_scheduler_does_not_clip_latents():
    settings = json.loads((EMBEDDED / "scheduler" / "scheduler_config.json").read_text())
    assert settings["clip_sample"] is False
