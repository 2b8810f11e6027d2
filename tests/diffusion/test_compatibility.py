"""Settings that go with a model and a device are taken, the others are one clear line."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion import compatibility
from online_aug.diffusion.compatibility import (
    CPU_SLOTS,
    MAX_SLOTS,
    check_slots,
    choose_attention,
    choose_dtype,
    choose_slots,
    fitting_slots,
)
from online_aug.diffusion.loading import load_img2img
from online_aug.errors import UserError


def test_auto_is_single_precision_on_a_cpu_and_half_on_a_gpu():
    assert choose_dtype("auto", "cpu") == "float32"
    assert choose_dtype("auto", "cuda:1") == "float16"
    assert choose_dtype("bfloat16", "cpu") == "bfloat16"


@given(fixed=st.integers(0, 1000), each=st.integers(1, 1000), budget=st.integers(0, 100_000))
def test_the_chosen_slots_fit_and_twice_as_many_would_not_or_exceed_the_limit(fixed, each, budget):
    slots = fitting_slots(lambda count: fixed + count * each, budget)
    assert slots == 1 or fixed + slots * each <= budget
    assert 2 * slots > MAX_SLOTS or fixed + 2 * slots * each > budget


def test_a_network_whose_memory_does_not_grow_takes_the_most():
    assert fitting_slots(lambda count: 100, 1000) == MAX_SLOTS


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return load_img2img(tiny_model, "float32")


@pytest.mark.parametrize(("wanted", "slots"), [("auto", CPU_SLOTS), (3, 3)])
def test_a_cpu_takes_a_fixed_number_unless_told_otherwise(pipeline, wanted, slots):
    assert choose_slots(GenerationConfig(slots=wanted, resolution=64), pipeline) == slots


@given(
    slots=st.integers(1, 100),
    fixed=st.integers(0, 1000),
    each=st.integers(1, 1000),
    free=st.integers(0, 100_000),
)
def test_a_number_of_slots_is_refused_only_if_they_do_not_fit(slots, fixed, each, free):
    def check():
        check_slots(slots, lambda count: fixed + count * each, free, "cuda:0")

    if fixed + slots * each <= free:
        check()
    else:
        with pytest.raises(UserError, match=rf"^generation\.slots must fit .* got {slots}, "):
            check()


def test_too_many_slots_are_one_clear_line_that_says_how_many_fit(pipeline, monkeypatch):
    config = GenerationConfig(slots=1000, resolution=64)
    monkeypatch.setattr(compatibility, "_free_bytes", lambda device: 2**24)
    with pytest.raises(UserError) as caught:
        choose_slots(config, pipeline)
    message = str(caught.value)
    found = re.fullmatch(
        r"generation\.slots must fit into the memory of cpu, 16\.0 MiB of which are free beside "
        r"the weights, got 1000, of which (\d+) fit; auto takes fewer",
        message,
    )
    fits = int(found[1])
    assert 1 < fits < 1000
    assert choose_slots(config.model_copy(update={"slots": fits}), pipeline) == fits


def test_without_guidance_about_twice_as_many_fit(pipeline, monkeypatch):
    fits = {}
    monkeypatch.setattr(compatibility, "_free_bytes", lambda device: 2**24)
    for scale in (1.0, 7.5):
        config = GenerationConfig(slots=10**6, resolution=64, guidance_scale=scale)
        with pytest.raises(UserError) as caught:
            choose_slots(config, pipeline)
        fits[scale] = int(re.search(r"which (\d+) fit", str(caught.value))[1])
    assert fits[1.0] == pytest.approx(2 * fits[7.5], abs=1)


class Chain(nn.Module):
    """A network with three results of the size of its input, at most two alive at once."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))
        self.config = SimpleNamespace(in_channels=4, cross_attention_dim=8)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, latents, timesteps, prompts):
        for _ in range(3):
            latents = (latents.view(-1) + self.weight[0]).view(latents.shape)
        return latents


@pytest.mark.parametrize("rows", [1, 6])
def test_memory_on_a_cpu_is_that_of_tensors_alive_beside_inputs_and_weights(rows):
    one_result = rows * 4 * 10 * 10 * 4
    assert compatibility._peak_bytes(Chain(), rows, 10) == 2 * one_result


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
