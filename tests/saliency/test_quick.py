import pytest
import timm
import torch
from torch import nn

from online_aug.saliency import grad_cam, quick_copy, upscaled
from online_aug.saliency.grad_cam import library_grad_cam, spare_copy

SIDE = 64
CLASSES = 5
RECORDED = ["resnet18", "test_efficientnet"]
PACKED = ["convnext_atto", "test_vit"]
ROUNDS = 4
"""Plain, recorded, and what the interpreter still changes in a recording's first calls."""


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"img_size": SIDE} if "vit" in name else {}
        return timm.create_model(name, num_classes=CLASSES, **options).eval()


@pytest.fixture(scope="module")
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, SIDE, SIDE, generator=rng), torch.arange(6) % CLASSES


@pytest.mark.parametrize("name", [*RECORDED, *PACKED])
def test_maps_through_the_copy_are_those_through_the_classifier(name, batch):
    model = build(name)
    images, labels = batch
    expected = grad_cam(model, images, labels)
    assert float(expected.amax()) > 0.5
    looking = quick_copy(model)
    for _ in range(ROUNDS):
        torch.testing.assert_close(grad_cam(looking, images, labels), expected, rtol=0, atol=1e-4)
    few = grad_cam(looking, images[:2], labels[:2])
    torch.testing.assert_close(few, expected[:2], rtol=0, atol=1e-4)


def vit_patches(tokens):
    side = SIDE // 16
    return tokens[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize(
    ("name", "layer", "reshape"),
    [
        ("resnet18", lambda m: m.layer4[-1], None),
        ("convnext_atto", lambda m: m.stages[-1], None),
        ("test_vit", lambda m: m.blocks[-1].norm1, vit_patches),
    ],
)
def test_maps_through_the_copy_are_those_of_pytorch_grad_cam(name, layer, reshape, batch):
    model = build(name)
    images, labels = batch
    spare = spare_copy(model)
    theirs = library_grad_cam(spare, images, labels, layer(spare), reshape)
    looking = quick_copy(model)
    for _ in range(ROUNDS):
        ours = upscaled(grad_cam(looking, images, labels), (SIDE, SIDE))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*RECORDED, *PACKED])
def test_the_copy_looks_with_the_weights_of_when_it_was_made(name, batch):
    model = build(name)
    before = grad_cam(model, *batch)
    looking = quick_copy(model)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(-0.5)
    torch.testing.assert_close(grad_cam(looking, *batch), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*RECORDED, *PACKED])
def test_making_and_using_the_copy_leaves_the_classifier_and_the_random_state(name, batch):
    model = build(name).train()
    values = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    looking = quick_copy(model)
    for _ in range(ROUNDS):
        grad_cam(looking, *batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)


def test_a_recording_is_used_from_the_second_batch_of_its_shape_on(batch, monkeypatch):
    looking = quick_copy(build("resnet18"))
    calls = []
    looking.layer4.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(ROUNDS):
        grad_cam(looking, *batch)
    assert len(calls) == 2  # once as it is, once to be recorded


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(3, 5, 3)), build("resnetv2_18")])
def test_a_network_without_a_linear_head_comes_back_as_it_is(network):
    assert quick_copy(network) is network
