"""Recorded, compiled and plain calls of one network."""

import pytest
import torch

from online_aug.generation.denoiser import Network, chosen_execution
from tools.embedded_model import architecture


@pytest.fixture(scope="module")
def unet():
    return architecture.new_unet().eval()


def inputs(count):
    rng = torch.Generator().manual_seed(count)
    return (
        torch.randn(count, 4, 8, 8, generator=rng),
        torch.arange(count) * 100.0,
        torch.randn(count, 5, 128, generator=rng),
        None,
    )


def test_a_recorded_call_predicts_what_the_plain_one_does_at_every_shape_and_time(unet):
    plain, recorded = Network(unet, "eager"), Network(unet, "graph")
    for count in (1, 3, 1, 2, 3):  # a recording is optimised in its first calls
        torch.testing.assert_close(recorded(*inputs(count)), plain(*inputs(count)))


def test_a_recorded_call_reads_all_of_its_inputs(unet):
    recorded = Network(unet, "graph")
    latents, times, prompts, _ = inputs(2)
    before = recorded(latents, times, prompts, None)
    for changed in (
        (latents + 1, times, prompts),
        (latents, times + 300, prompts),
        (latents, times, prompts + 1),
    ):
        assert (recorded(*changed, None) - before).abs().max() > 1e-4


def test_a_shape_is_recorded_once(unet, monkeypatch):
    calls = []
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *a, **k: calls.append(a) or trace(*a, **k))
    recorded = Network(unet, "graph")
    for count in (1, 2, 1, 2):
        recorded(*inputs(count))
    assert len(calls) == 2
    recorded.forget_recordings()
    recorded(*inputs(1))
    assert len(calls) == 3


def test_compiling_hands_the_whole_network_at_static_shapes_to_torch(unet, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda m, **how: asked.append(how) or m)
    Network(unet, "compile")(*inputs(2))
    assert asked == [{"dynamic": False}]


@pytest.mark.parametrize(
    ("wanted", "device", "chosen"),
    [
        ("auto", "cpu", "graph"),
        ("auto", "cuda", "eager"),
        ("eager", "cpu", "eager"),
        ("compile", "cuda", "compile"),
        ("graph", "cuda", "graph"),
    ],
)
def test_a_cpu_records_unless_told_otherwise(wanted, device, chosen):
    assert chosen_execution(wanted, torch.device(device)) == chosen
