"""Textual inversion and LoRA: what is learned, what stays, and that stock diffusers takes it."""

import json

import pytest
import torch
from finetuning_samples import CONCEPTS, CONFIG, examples, run, stock_pipeline
from request_samples import make_request
from safetensors.torch import load_file

from online_aug.config.generation import GenerationConfig
from online_aug.diffusion.adapters import (
    CONCEPTS_FILE,
    LORA_FILE,
    TOKENS_FILE,
    is_finetuned,
    load_adapters,
    read_result,
)
from online_aug.diffusion.import_adapters import TARGETS
from online_aug.diffusion.loading import load_img2img
from online_aug.finetuning import loop
from online_aug.finetuning.learner import ExtendedEmbedding
from online_aug.generation.engine import ImageGenerator
from online_aug.seeding import numpy_rng, torch_rng

PROMPT = CONCEPTS[1].prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuned") / "result"


@pytest.fixture(scope="module")
def trained(tiny_model, folder):
    """The pipeline after three steps; the result lies in `folder`."""
    return run(tiny_model, folder)


def plain_weights(module):
    """Weights under the names they had before peft and our embedding wrapped them."""
    return {
        name.replace(".base_layer", "").replace("token_embedding.known", "token_embedding"): value
        for name, value in module.state_dict().items()
        if "lora_" not in name and not name.endswith("token_embedding.new")
    }


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_no_weight_of_the_model_itself_changes(tiny_model, trained, part):
    before = getattr(load_img2img(tiny_model, "float32"), part).state_dict()
    after = plain_weights(getattr(trained, part))
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_lora_of_every_attention_and_every_token_is_learned(tiny_model, trained, folder, tmp_path):
    run(tiny_model, tmp_path / "one", CONFIG.model_copy(update={"steps": 1}))
    for file in (LORA_FILE, TOKENS_FILE):
        one, three = load_file(tmp_path / "one" / file), load_file(folder / file)
        assert set(one) == set(three)
        assert [name for name in one if torch.equal(one[name], three[name])] == []
    modules = [name for name, _ in trained.unet.named_modules()]
    attentions = [name for name in modules if name.endswith((".attn1", ".attn2"))]
    assert len(load_file(folder / LORA_FILE)) == len(attentions) * len(TARGETS) * 2


def test_every_step_is_reported_with_its_loss(tiny_model, tmp_path):
    told = []
    run(tiny_model, tmp_path / "result", report=lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [1, 2, 3]
    assert all(0 < loss < 100 for _, loss in told)


def test_the_loss_on_one_batch_falls(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "numpy_rng", lambda *parts: numpy_rng("the same every step"))
    losses = []
    config = CONFIG.model_copy(update={"steps": 8})
    run(tiny_model, tmp_path / "result", config, report=lambda step, loss: losses.append(loss))
    assert losses == sorted(losses, reverse=True)


def test_the_same_seed_gives_the_same_files(tiny_model, trained, folder, tmp_path):
    run(tiny_model, tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_another_seed_gives_another_result(tiny_model, trained, folder, tmp_path):
    run(tiny_model, tmp_path / "other", CONFIG.model_copy(update={"seed": 1}))
    for name in (LORA_FILE, TOKENS_FILE):
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_the_global_random_state_is_left_alone(tiny_model, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tiny_model, tmp_path / "result", CONFIG.model_copy(update={"steps": 1}))
    assert torch.equal(torch.rand(3), expected)


def test_a_result_is_safetensors_and_json_only_and_marked_whole(trained, folder):
    assert {path.name for path in folder.iterdir()} == {LORA_FILE, TOKENS_FILE, CONCEPTS_FILE}
    assert is_finetuned(folder)
    stored = json.loads((folder / CONCEPTS_FILE).read_text())
    assert [concept["token"] for concept in stored] == ["<class_0>", "<class_1>", "<class_2>"]


def test_what_is_loaded_is_what_was_trained(tiny_model, trained, folder):
    """The prompt's embedding and the network's answer, before saving and after loading."""
    loaded = load_img2img(tiny_model, "float32")
    load_adapters(loaded, read_result(folder))
    latents, time = torch.randn(1, 4, 16, 16, generator=torch_rng(0)), torch.tensor([500])
    answers = []
    with torch.no_grad():
        for pipeline in (trained, loaded):
            words, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
            answers.append((words, pipeline.unet(latents, time, words).sample))
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=0, atol=1e-4)


def test_stock_diffusers_loads_both_files_and_makes_the_same_image(tiny_model, trained, folder):
    request = make_request(
        prompt=PROMPT, num_inference_steps=4, strength=0.75, scheduler="ddim", noise_seed=3
    )
    image = examples().load(0)
    generator = ImageGenerator.load(
        tiny_model, read_result(folder), GenerationConfig(), "float32", "cpu"
    )
    made = generator.generate([request], image.unsqueeze(0))
    expected = stock_pipeline(tiny_model, folder)(
        prompt=PROMPT,
        image=image.unsqueeze(0) / 255,
        strength=request.strength,
        num_inference_steps=4,
        guidance_scale=request.guidance_scale,
        generator=torch_rng(3),
        output_type="pt",
    ).images
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)
    bare = ImageGenerator.load(tiny_model, None, GenerationConfig(), "float32", "cpu")
    assert (bare.generate([request], image.unsqueeze(0)) - made).abs().max() > 0.01


def test_each_class_token_is_one_token_with_a_meaning_of_its_own(tiny_model, trained, folder):
    pipeline = stock_pipeline(tiny_model, folder)
    ids = [pipeline.tokenizer(c.token, add_special_tokens=False).input_ids for c in CONCEPTS]
    assert [len(one) for one in ids] == [1, 1, 1]
    rows = pipeline.text_encoder.get_input_embeddings().weight.detach()[torch.tensor(ids).squeeze()]
    torch.testing.assert_close(rows, load_file(folder / TOKENS_FILE)["clip_l"])
    assert len({tuple(row.tolist()) for row in rows}) == 3


def test_an_extended_embedding_gives_known_rows_and_new_ones():
    known = torch.nn.Embedding(4, 3).requires_grad_(False)
    embedding = ExtendedEmbedding(known, torch.ones(2, 3))
    found = embedding(torch.tensor([[0, 3, 4, 5]]))[0]
    torch.testing.assert_close(found[:2], known.weight[[0, 3]])
    torch.testing.assert_close(found[2:], torch.ones(2, 3))
    found.sum().backward()
    assert embedding.new.grad.tolist() == [[1.0] * 3] * 2
    assert known.weight.grad is None
