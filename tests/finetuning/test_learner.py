"""Results of each mode: what is learned, what stays as it is, and that stock diffusers loads it."""

import json
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from finetuning_samples import (
    CONCEPTS,
    CONFIG,
    NAMED,
    NAMES,
    config_with,
    examples,
    lora_of,
    run,
    stock_pipeline,
    tokens_of,
)
from request_samples import make_request
from safetensors.torch import load_file

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.adaptation import LORA_LAYERS
from online_aug.diffusion.adapters import (
    CONCEPTS_FILE,
    LORA_FILE,
    TOKENS_FILE,
    is_finetuned,
    read_result,
    vector_tokens,
)
from online_aug.diffusion.loading import DTYPES, load_adapters, load_img2img
from online_aug.finetuning import learner, loop
from online_aug.finetuning.learner import ExtendedEmbedding
from online_aug.generation.engine import ImageGenerator
from online_aug.seeding import numpy_rng, torch_rng

pytestmark = pytest.mark.slow
PROMPT = CONCEPTS[1].prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuned") / "result"


@pytest.fixture(scope="module")
def losses():
    """The losses of `trained` by step."""
    return {}


@pytest.fixture(scope="module")
def trained(tiny_model, folder, losses):
    """The pipeline after three steps in float32; the result lies in `folder`."""
    return run(tiny_model, folder, report=losses.__setitem__)


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


def test_every_step_is_reported_with_its_loss(trained, losses):
    assert list(losses) == [1, 2, 3]
    assert all(0 < loss < 100 for loss in losses.values())


def test_the_loss_on_one_batch_falls(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "numpy_rng", lambda *parts: numpy_rng("the same every step"))
    found = {}
    config = CONFIG.model_copy(update={"steps": 8})
    run(tiny_model, tmp_path / "result", config, report=found.__setitem__)
    assert list(found.values()) == sorted(found.values(), reverse=True)


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


def test_a_result_holds_only_safetensors_and_json_and_is_marked_as_whole(trained, folder):
    assert {path.name for path in folder.iterdir()} == {LORA_FILE, TOKENS_FILE, CONCEPTS_FILE}
    assert is_finetuned(folder)
    stored = json.loads((folder / CONCEPTS_FILE).read_text())
    assert [concept["token"] for concept in stored] == ["<class_0>", "<class_1>", "<class_2>"]


def test_a_loaded_result_answers_as_the_trained_model_does(tiny_model, trained, folder):
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


FILES = {
    "joint": {LORA_FILE, TOKENS_FILE},
    "textual_inversion": {TOKENS_FILE},
    "staged": {LORA_FILE, TOKENS_FILE},
    "lora": {LORA_FILE},
}
"""Files of a result, by mode."""
VERSIONS = {"joint": 1, "textual_inversion": 2, "staged": 2, "lora": 1}


@pytest.fixture(scope="module", params=FILES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def miniature(miniature_of, mode):
    """A model like Stable Diffusion 1.x for two of the modes, like 2.x for the others."""
    return miniature_of(VERSIONS[mode])


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
        assert len(lora_of(more)) == len(attentions) * len(LORA_LAYERS) * 2
        assert [k for k in lora_of(more) if torch.equal(lora_of(less)[k], lora_of(more)[k])] == []


def test_stock_diffusers_loads_it_and_makes_the_same_image(miniature, result, mode):
    prompt = (NAMED if mode == "lora" else CONCEPTS)[1].prompt
    settings = {"num_inference_steps": 2, "strength": 1.0, "guidance_scale": 3.0}
    request = make_request(prompt=prompt, scheduler="ddim", noise_seed=3, **settings)
    image = examples().load(0).unsqueeze(0)
    config = GenerationConfig(slots=1, resolution=64, execution="eager")
    made = ImageGenerator.load(miniature, read_result(result), config, "float32", "cpu")
    stock = stock_pipeline(miniature, result)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, clip_sample=False)
    found = made.generate([request], image)
    expected = stock(
        prompt=prompt, image=image / 255, generator=torch_rng(3), output_type="pt", **settings
    ).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_staged_tokens_are_those_of_textual_inversion_alone(miniature_of, tmp_path):
    miniature = miniature_of(1)
    run(miniature, tmp_path / "tokens", config_with(mode="textual_inversion", steps=2))
    run(miniature, tmp_path / "staged", config_with(mode="staged", token_steps=2, steps=3))
    torch.testing.assert_close(tokens_of(tmp_path / "tokens"), tokens_of(tmp_path / "staged"))


def test_a_class_run_learns_from_its_own_images_only(tiny_model, tmp_path):
    config = config_with(mode="textual_inversion", per_class=True, steps=2)
    run(tiny_model, tmp_path / "some", config, labels=(0, 0, 1, 1, 2, 2))
    run(tiny_model, tmp_path / "other", config, labels=(0, 0, 2, 2, 1, 1))
    is_same = (tokens_of(tmp_path / "some") == tokens_of(tmp_path / "other")).all(dim=1)
    assert is_same.tolist() == [True, False, False]


@pytest.fixture(scope="module")
def several(tiny_model, tmp_path_factory):
    """A result with tokens of three vectors, and the pipeline that learned it."""
    folder = tmp_path_factory.mktemp("finetuned") / "several"
    return folder, run(tiny_model, folder, config_with(mode="textual_inversion", num_vectors=3))


def test_every_vector_of_a_token_is_learned_and_saved(tiny_model, several, tmp_path):
    folder, _ = several
    config = config_with(mode="textual_inversion", num_vectors=3, steps=1)
    run(tiny_model, tmp_path / "less", config)
    assert tokens_of(folder).shape[0] == 3 * len(NAMES)
    assert (tokens_of(folder) != tokens_of(tmp_path / "less")).any(dim=1).all()
    assert len({tuple(row.tolist()) for row in tokens_of(folder)}) == 3 * len(NAMES)


def test_a_loaded_token_of_several_vectors_means_what_was_learned(tiny_model, several):
    folder, trained = several
    loaded = load_img2img(tiny_model, "float32")
    load_adapters(loaded, read_result(folder))
    assert [part.shape[0] for part in read_result(folder).tokens.values()] == [3, 3, 3]
    with torch.no_grad():
        words, again = (
            pipe.encode_prompt(PROMPT, "cpu", 1, False)[0] for pipe in (trained, loaded)
        )
        ids = loop._prompt_ids(trained, [PROMPT])
        taught = trained.text_encoder(ids)[0]
    torch.testing.assert_close(words, again, rtol=0, atol=1e-5)
    torch.testing.assert_close(words, taught, rtol=0, atol=1e-5)


def test_stock_diffusers_loads_tokens_of_several_vectors_in_one_call(tiny_model, several):
    folder, trained = several
    stock = load_img2img(tiny_model, "float32")
    names = [name for one in CONCEPTS for name in vector_tokens(one.token, 3)]
    stock.load_textual_inversion(tokens_of(folder), token=names)
    with torch.no_grad():
        found, learned = (
            pipe.encode_prompt(PROMPT, "cpu", 1, False)[0] for pipe in (stock, trained)
        )
    torch.testing.assert_close(found, learned, rtol=0, atol=1e-5)


def test_tokens_start_at_the_words_that_are_named(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(learner, "TOKEN_SPREAD", 0.0)
    config = config_with(steps=1, token_lr=1e-30, initializer="{class} bird")
    pipeline = run(tiny_model, tmp_path / "named", config)
    known = pipeline.text_encoder.get_input_embeddings().known.weight
    for row, name in zip(tokens_of(tmp_path / "named"), NAMES, strict=True):
        ids = pipeline.tokenizer(f"{name} bird", add_special_tokens=False).input_ids
        torch.testing.assert_close(row, known[ids].mean(0))


def test_class_balance_changes_what_is_learned(tiny_model, tmp_path):
    labels = (0, 0, 0, 0, 1, 2)
    run(tiny_model, tmp_path / "all", config_with(), labels=labels)
    run(tiny_model, tmp_path / "balanced", config_with(class_balance=1.0), labels=labels)
    assert not torch.equal(tokens_of(tmp_path / "all"), tokens_of(tmp_path / "balanced"))


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()


def test_activations_computed_twice_give_the_same_result_to_the_last_bit(
    tiny_model, trained, folder, losses, tmp_path, monkeypatch
):
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*args, **settings):
        calls.append(args)
        return checkpoint(*args, **settings)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    found = {}
    config = config_with(gradient_checkpointing=True)
    run(tiny_model, tmp_path / "result", config, report=found.__setitem__)
    assert found == losses
    for path in folder.iterdir():
        assert (tmp_path / "result" / path.name).read_bytes() == path.read_bytes()
    assert calls


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_halves_what_is_frozen_and_learns_nearly_the_same(  # noqa: PLR0913
    tiny_model, trained, folder, losses, tmp_path, dtype
):
    """A CPU can do enough float16 for a test; a user who asks for it there is refused."""
    found, result = {}, tmp_path / "result"
    pipeline = run(tiny_model, result, config_with(dtype=dtype), report=found.__setitem__)
    assert found == pytest.approx(losses, rel=0.05)
    assert found != losses
    alike = torch.cosine_similarity(flat(lora_of(result)), flat(lora_of(folder)), dim=0)
    assert 0.999 < alike < 1
    assert {value.dtype for value in lora_of(result).values()} == {torch.float32}
    for name, parameter in [
        *pipeline.unet.named_parameters(),
        *pipeline.text_encoder.named_parameters(),
    ]:
        is_learned = "lora_" in name or name.endswith(".new")
        assert parameter.dtype == (torch.float32 if is_learned else DTYPES[dtype])


def test_a_step_of_scaled_gradients_that_overflow_is_left_out(tiny_model, tmp_path, monkeypatch):
    """The scale halves until the gradients fit, as everywhere in PyTorch."""
    largest = partial(torch.amp.GradScaler, init_scale=1e38)
    monkeypatch.setattr(torch.amp, "GradScaler", largest)
    run(tiny_model, tmp_path / "none", config_with(steps=1, dtype="float16"))
    run(tiny_model, tmp_path / "untouched", config_with(steps=1, lr=1e-30, token_lr=1e-30))
    assert torch.equal(tokens_of(tmp_path / "none"), tokens_of(tmp_path / "untouched"))
