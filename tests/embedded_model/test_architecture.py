"""The embedded model's architecture: stock diffusers loads and runs it."""

import json

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from tiny_model import CORPUS

from tools.embedded_model import architecture

PARTS = {"vae": 0.6e6, "unet": 3.4e6, "text_encoder": 0.7e6}
"""Largest number of parameters of each part."""


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    loaded = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_model, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_stock_diffusers_makes_an_image_of_64_px(pipeline):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = pipeline("a photo of a bird", image=image, strength=1.0, num_inference_steps=2)
    assert made.images[0].size == (64, 64)


def test_stock_diffusers_also_makes_images_from_text_alone(tiny_model):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a photo of a bird", num_inference_steps=2, output_type="pt")
    assert made.images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_small(pipeline, part):
    assert sum(p.numel() for p in getattr(pipeline, part).parameters()) < PARTS[part]


def test_the_directory_is_at_most_eight_megabytes(tiny_model):
    assert sum(path.stat().st_size for path in tiny_model.rglob("*") if path.is_file()) <= 8e6


def test_weights_are_half_precision_safetensors(tiny_model):
    weights = sorted(tiny_model.rglob("*.safetensors"))
    assert len(weights) == 3
    for path in weights:
        size = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + size])
        header.pop("__metadata__", None)
        assert {entry["dtype"] for entry in header.values()} <= {"F16", "I64"}
    assert not list(tiny_model.rglob("*.bin"))


def test_solvers_do_not_clip_latents(tiny_model):
    settings = json.loads((tiny_model / "scheduler" / "scheduler_config.json").read_text())
    assert settings["clip_sample"] is False


def test_a_known_word_is_one_token_and_any_text_can_be_written(pipeline):
    tokenizer = pipeline.tokenizer
    assert tokenizer.tokenize("bird")[0] == "bird</w>"
    for text in (CORPUS[0], "xylophone quartz"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids).strip() == text


def test_a_tokenizer_is_a_function_of_its_corpus():
    vocabularies = [architecture.new_tokenizer(CORPUS).get_vocab() for _ in range(2)]
    assert vocabularies[0] == vocabularies[1]
