"""The number of slots from what one and two images take."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from online_aug.config.generation import GenerationConfig
from online_aug.diffusion import loading
from online_aug.diffusion.loading import (
    CPU_SLOTS,
    MOST_SLOTS,
    check_slots,
    chosen_slots,
    fitting_slots,
    load_img2img,
)
from online_aug.errors import UserError


@given(fixed=st.integers(0, 1000), each=st.integers(1, 1000), budget=st.integers(0, 100_000))
def test_what_is_chosen_fits_and_twice_as_many_would_not_or_are_not_wanted(fixed, each, budget):
    slots = fitting_slots(lambda count: fixed + count * each, budget)
    assert slots == 1 or fixed + slots * each <= budget
    assert 2 * slots > MOST_SLOTS or fixed + 2 * slots * each > budget


def test_a_network_whose_memory_does_not_grow_takes_the_most():
    assert fitting_slots(lambda count: 100, 1000) == MOST_SLOTS


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return load_img2img(tiny_model, "float32")


@pytest.mark.parametrize(("wanted", "slots"), [("auto", CPU_SLOTS), (3, 3)])
def test_a_cpu_takes_a_fixed_number_unless_told_otherwise(pipeline, wanted, slots):
    assert chosen_slots(GenerationConfig(slots=wanted, resolution=64), pipeline) == slots


@given(
    slots=st.integers(1, 100),
    fixed=st.integers(0, 1000),
    each=st.integers(1, 1000),
    free=st.integers(0, 100_000),
)
def test_a_number_is_refused_where_so_many_do_not_fit_and_only_there(slots, fixed, each, free):
    def check():
        check_slots(slots, lambda count: fixed + count * each, free, "cuda:0")

    if fixed + slots * each <= free:
        check()
    else:
        with pytest.raises(UserError, match=rf"^generation\.slots must fit .* got {slots}, "):
            check()


def test_more_slots_than_memory_are_one_clear_line_that_says_how_many_fit(pipeline, monkeypatch):
    config = GenerationConfig(slots=1000, resolution=64)
    monkeypatch.setattr(loading, "_free_bytes", lambda device: 2**24)
    with pytest.raises(UserError) as caught:
        chosen_slots(config, pipeline)
    message = str(caught.value)
    found = re.fullmatch(
        r"generation\.slots must fit into the memory of cpu, 16\.0 MiB of which are free beside "
        r"the weights, got 1000, of which (\d+) fit; auto takes fewer",
        message,
    )
    fits = int(found[1])
    assert 1 < fits < 1000
    assert chosen_slots(config.model_copy(update={"slots": fits}), pipeline) == fits


def test_without_guidance_about_twice_as_many_fit(pipeline, monkeypatch):
    fits = {}
    monkeypatch.setattr(loading, "_free_bytes", lambda device: 2**24)
    for scale in (1.0, 7.5):
        config = GenerationConfig(slots=10**6, resolution=64, guidance_scale=scale)
        with pytest.raises(UserError) as caught:
            chosen_slots(config, pipeline)
        fits[scale] = int(re.search(r"which (\d+) fit", str(caught.value))[1])
    assert fits[1.0] == pytest.approx(2 * fits[7.5], abs=1)


class Chain(nn.Module):
    """Three results of the size of its input, of which no more than two live at once."""

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
def test_what_a_call_takes_on_a_cpu_is_what_lives_at_once_beside_inputs_and_weights(rows):
    one_result = rows * 4 * 10 * 10 * 4
    assert loading._peak_bytes(Chain(), rows, 10) == 2 * one_result
