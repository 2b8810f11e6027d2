"""The quick copy of a classifier makes the same maps and leaves the classifier alone."""

import pytest
import timm
import torch
from torch import nn

from online_aug.saliency import grad_cam, quick_copy

SIDE = 64
CLASSES = 5
TRACED = ["resnet18", "test_efficientnet"]
PACKED = ["convnext_atto", "test_vit"]
SMALL = ["test_efficientnet", "test_vit"]
ROUNDS = 4
"""Untraced, traced, and the first calls in which the interpreter still optimises."""


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"img_size": SIDE} if "vit" in name else {}
        return timm.create_model(name, num_classes=CLASSES, **options).eval()


@pytest.fixture(scope="module")
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, SIDE, SIDE, generator=rng), torch.arange(6) % CLASSES


@pytest.mark.parametrize("name", [*TRACED, *PACKED])
def test_maps_through_the_copy_are_those_through_the_classifier(name, batch):
    model = build(name)
    images, labels = batch
    expected = grad_cam(model, images, labels)
    assert float(expected.amax()) > 0.5
    quick = quick_copy(model)
    for _ in range(ROUNDS):
        torch.testing.assert_close(grad_cam(quick, images, labels), expected, rtol=0, atol=1e-4)
    few = grad_cam(quick, images[:2], labels[:2])
    torch.testing.assert_close(few, expected[:2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_copy_keeps_the_weights_it_was_made_with(name, batch):
    model = build(name)
    before = grad_cam(model, *batch)
    quick = quick_copy(model)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(-0.5)
    torch.testing.assert_close(grad_cam(quick, *batch), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_copy_does_not_change_the_classifier_or_the_random_state(name, batch):
    model = build(name).train()
    values = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    quick = quick_copy(model)
    for _ in range(ROUNDS):
        grad_cam(quick, *batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)


def test_the_body_is_traced_on_the_second_batch_of_a_shape(batch, monkeypatch):
    quick = quick_copy(build("resnet18"))
    calls = []
    quick.layer4.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(ROUNDS):
        grad_cam(quick, *batch)
    assert len(calls) == 2  # once untraced, once while tracing


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(3, 5, 3)), build("resnetv2_18")])
def test_a_network_without_a_linear_head_is_returned_as_it_is(network):
    assert quick_copy(network) is network
