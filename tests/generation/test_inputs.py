"""Embeddings of prompts; how the starting point is drawn is tested with the engine."""

import pytest
import torch

from online_aug.diffusion.loading import load_pipeline
from online_aug.generation.inputs import Prompts

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["image_to_image", "instruct"])
def pipeline(request, tiny_model, tiny_editor):
    folder = tiny_model if request.param == "image_to_image" else tiny_editor
    return load_pipeline(folder, "float32", request.param)


def test_an_embedding_is_that_of_the_text_encoder(pipeline):
    tokens = pipeline.tokenizer(
        "a bird",
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        expected = pipeline.text_encoder(tokens)[0][0]
    torch.testing.assert_close(Prompts(pipeline, CPU)["a bird"], expected)


def test_a_prompt_is_embedded_once(pipeline):
    calls = []
    hook = pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    prompts = Prompts(pipeline, CPU)
    prompts.embed(["a bird", "snow", "a bird"])
    for prompt in ("snow", "a bird", "snow"):
        prompts[prompt]
    hook.remove()
    assert len(calls) == 2


def test_the_text_encoder_is_on_the_device_only_while_it_is_needed(pipeline, monkeypatch):
    places = []
    monkeypatch.setattr(pipeline.text_encoder, "to", places.append)
    prompts = Prompts(pipeline, CPU)
    prompts.embed(["a bird", "snow"])
    prompts["a bird"]
    assert places == ["cpu", CPU, "cpu"]
