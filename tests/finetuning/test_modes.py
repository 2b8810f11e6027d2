"""Every mode on models built like Stable Diffusion 1.x and 2.x: what it learns and saves."""

import pytest
import torch
from diffusers import DDIMScheduler
from finetuning_samples import (
    CONCEPTS,
    NAMED,
    config_with,
    examples,
    lora_of,
    run,
    stock_pipeline,
    tokens_of,
)
from request_samples import make_request

from online_aug.config.generation import GenerationConfig
from online_aug.diffusion.adapters import CONCEPTS_FILE, LORA_FILE, TOKENS_FILE, read_result
from online_aug.diffusion.import_adapters import TARGETS
from online_aug.diffusion.loading import load_img2img
from online_aug.generation.engine import ImageGenerator
from online_aug.seeding import torch_rng

FILES = {
    "joint": {LORA_FILE, TOKENS_FILE},
    "textual_inversion": {TOKENS_FILE},
    "staged": {LORA_FILE, TOKENS_FILE},
    "lora": {LORA_FILE},
}


@pytest.fixture(scope="module", params=FILES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def result(miniature, mode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned") / mode
    run(miniature, folder, config_with(mode=mode))
    return folder


def test_a_result_holds_what_its_mode_learns_and_nothing_else(result, mode):
    assert {path.name for path in result.iterdir()} == FILES[mode] | {CONCEPTS_FILE}


def test_every_token_and_every_attention_has_learned(miniature, result, mode, tmp_path):
    run(miniature, tmp_path / "less", config_with(mode=mode, steps=1))
    less, more = tmp_path / "less", result
    if TOKENS_FILE in FILES[mode]:
        assert (tokens_of(less) != tokens_of(more)).any(dim=1).all()
    if LORA_FILE in FILES[mode]:
        modules = dict(load_img2img(miniature, "float32").unet.named_modules())
        attentions = [name for name in modules if name.endswith((".attn1", ".attn2"))]
        assert len(attentions) >= 8
        assert len(lora_of(more)) == len(attentions) * len(TARGETS) * 2
        assert [k for k in lora_of(more) if torch.equal(lora_of(less)[k], lora_of(more)[k])] == []


def test_stock_diffusers_loads_it_and_makes_the_same_image(miniature, result, mode):
    prompt = (NAMED if mode == "lora" else CONCEPTS)[1].prompt
    settings = {"num_inference_steps": 4, "strength": 0.75, "guidance_scale": 3.0}
    request = make_request(prompt=prompt, scheduler="ddim", noise_seed=3, **settings)
    image = examples().load(0).unsqueeze(0)
    made = ImageGenerator.load(miniature, read_result(result), GenerationConfig(), "float32", "cpu")
    stock = stock_pipeline(miniature, result)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, clip_sample=False)
    found = made.generate([request], image)
    expected = stock(
        prompt=prompt, image=image / 255, generator=torch_rng(3), output_type="pt", **settings
    ).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_staged_tokens_are_those_of_textual_inversion_alone(miniature, tmp_path):
    run(miniature, tmp_path / "tokens", config_with(mode="textual_inversion", steps=2))
    run(miniature, tmp_path / "staged", config_with(mode="staged", token_steps=2, steps=3))
    torch.testing.assert_close(tokens_of(tmp_path / "tokens"), tokens_of(tmp_path / "staged"))


def test_a_class_run_learns_from_its_own_images_only(tiny_model, tmp_path):
    config = config_with(mode="textual_inversion", per_class=True, steps=2)
    run(tiny_model, tmp_path / "some", config, labels=(0, 0, 1, 1, 2, 2))
    run(tiny_model, tmp_path / "other", config, labels=(0, 0, 2, 2, 1, 1))
    is_same = (tokens_of(tmp_path / "some") == tokens_of(tmp_path / "other")).all(dim=1)
    assert is_same.tolist() == [True, False, False]


def test_class_balance_changes_what_is_learned(tiny_model, tmp_path):
    labels = (0, 0, 0, 0, 1, 2)
    run(tiny_model, tmp_path / "all", config_with(), labels=labels)
    run(tiny_model, tmp_path / "balanced", config_with(class_balance=1.0), labels=labels)
    assert not torch.equal(tokens_of(tmp_path / "all"), tokens_of(tmp_path / "balanced"))
