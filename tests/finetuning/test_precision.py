"""Less memory: frozen weights in half precision, activations computed twice."""

from functools import partial

import pytest
import torch
from finetuning_samples import config_with, lora_of, run, tokens_of

from online_aug.diffusion.loading import DTYPES


@pytest.fixture(scope="module")
def plain(tiny_model, tmp_path_factory):
    """Three steps in float32, every activation kept: the result's folder and the losses."""
    return run_with(tiny_model, tmp_path_factory.mktemp("plain"))


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()


def run_with(model, folder, **settings):
    losses = []
    config = config_with(**settings)
    run(model, folder / "result", config, report=lambda step, loss: losses.append(loss))
    return folder / "result", losses


def test_activations_computed_twice_give_the_same_result_to_the_last_bit(
    tiny_model, plain, tmp_path
):
    found, losses = run_with(tiny_model, tmp_path, gradient_checkpointing=True)
    assert losses == plain[1]
    for path in plain[0].iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes()


def test_activations_are_computed_twice_where_asked(tiny_model, tmp_path, monkeypatch):
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*args, **settings):
        calls.append(args)
        return checkpoint(*args, **settings)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    run_with(tiny_model, tmp_path, steps=1, gradient_checkpointing=True)
    assert calls


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same(tiny_model, plain, tmp_path, dtype):
    """Of float16 the CPU can do enough for a test; whoever asks for it there is refused."""
    found, losses = run_with(tiny_model, tmp_path, dtype=dtype)
    assert losses == pytest.approx(plain[1], rel=0.05)
    assert losses != plain[1]
    alike = torch.cosine_similarity(flat(lora_of(found)), flat(lora_of(plain[0])), dim=0)
    assert 0.999 < alike < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_frozen_weights_are_halved_and_what_is_learned_is_not(tiny_model, tmp_path, dtype):
    pipeline = run(tiny_model, tmp_path / "result", config_with(steps=1, dtype=dtype))
    named = [*pipeline.unet.named_parameters(), *pipeline.text_encoder.named_parameters()]
    is_learned = [name for name, _ in named if "lora_" in name or name.endswith(".new")]
    for name, parameter in named:
        assert parameter.dtype == (torch.float32 if name in is_learned else DTYPES[dtype])
    assert {value.dtype for value in lora_of(tmp_path / "result").values()} == {torch.float32}


def test_a_step_of_scaled_gradients_that_overflow_is_left_out(tiny_model, tmp_path, monkeypatch):
    """The scale halves until the gradients fit, as everywhere in PyTorch."""
    largest = partial(torch.amp.GradScaler, init_scale=1e38)
    monkeypatch.setattr(torch.amp, "GradScaler", largest)
    run(tiny_model, tmp_path / "none", config_with(steps=1, dtype="float16"))
    run(tiny_model, tmp_path / "untouched", config_with(steps=1, lr=1e-30, token_lr=1e-30))
    assert torch.equal(tokens_of(tmp_path / "none"), tokens_of(tmp_path / "untouched"))
