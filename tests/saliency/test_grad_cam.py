"""Grad-CAM maps equal those of pytorch_grad_cam and leave the classifier as it was."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from online_aug.saliency import grad_cam, scaled, upscaled
from online_aug.saliency.grad_cam import library_grad_cam, spare_copy

SIDE = 64
CLASSES = 5


class Plain(nn.Sequential):
    """A network without timm's `forward_features` and `blocks`."""

    def __init__(self):
        conv = nn.Conv2d(3, 8, 3, stride=4)
        super().__init__(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def build(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "plain":
            return Plain().eval()
        model = timm.create_model(name, num_classes=CLASSES, **options).eval()
        for head in model.get_classifier().parameters():
            if not head.any():  # some start at zero, and see nothing
                nn.init.normal_(head)
        return model


def patches_of(model):
    height, width = model.patch_embed.dynamic_feat_size((SIDE, SIDE))

    def reshape(tokens):
        return tokens[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, (height, width))

    return reshape


def late_class(model):
    """Reshape the tokens of CaiT, which are all patches: the class token is added later."""
    return lambda tokens: tokens.transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16))


def tokens_at(side, others=0):
    """Reshape tokens to a square, behind those that are no patches."""
    return lambda model: (
        lambda tokens: tokens[:, others:].transpose(1, 2).unflatten(2, (side, side))
    )


RESNET = ("resnet18", {}, lambda m: m.layer4[-1], None)
CONVNEXT = ("convnext_atto", {}, lambda m: m.stages[-1], None)
VIT = ("vit_tiny_patch16_224", {"img_size": SIDE}, lambda m: m.blocks[-1].norm1, patches_of)
OTHERS = [
    ("test_resnet", {}, lambda m: m.layer4[-1], None),
    ("test_convnext", {}, lambda m: m.stages[-1], None),
    ("test_efficientnet", {}, lambda m: m.bn2, None),
    ("test_vit", {"img_size": SIDE}, lambda m: m.blocks[-1].norm1, patches_of),
    ("deit3_small_patch16_224", {"img_size": SIDE}, lambda m: m.blocks[-1].norm1, patches_of),
    ("vit_base_patch16_clip_224", {"img_size": SIDE, "depth": 2}, lambda m: m.blocks[-1].norm1,
     patches_of),
    ("cait_xxs24_224", {"img_size": SIDE, "depth": 2, "init_values": 1.0},
     lambda m: m.blocks[-1].norm1, late_class),
    ("plain", {}, lambda m: m[1], None),
    ("mixer_s32_224", {"img_size": SIDE}, lambda m: m.norm, tokens_at(2)),
    ("resmlp_12_224", {"img_size": SIDE}, lambda m: m.norm, tokens_at(4)),
    ("xcit_nano_12_p16_224", {"img_size": SIDE, "depth": 2}, lambda m: m.cls_attn_blocks[1].norm1,
     tokens_at(4, 1)),
    ("tnt_s_patch16_224", {"img_size": SIDE, "depth": 2}, lambda m: m.blocks[-1].norm_out,
     tokens_at(4, 1)),
    ("pit_ti_224", {"img_size": SIDE, "depth": (1, 1, 1)},
     lambda m: m.transformers[2].blocks[-1].norm1, tokens_at(2, 1)),
    ("mvitv2_tiny", {"img_size": SIDE}, lambda m: m.norm, tokens_at(2)),
    ("samvit_base_patch16_224", {"img_size": SIDE, "depth": 1}, lambda m: m.neck, None),
    ("volo_d1_224", {"img_size": SIDE}, lambda m: m.post_network[-1].norm1, tokens_at(4, 1)),
]  # fmt: skip
FAST = ["test_resnet", "test_convnext", "test_vit"]


@pytest.fixture(scope="module")
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, SIDE, SIDE, generator=rng), torch.arange(6) % CLASSES


@pytest.mark.parametrize("case", [RESNET, CONVNEXT, VIT, *OTHERS], ids=lambda case: case[0])
def test_maps_are_those_of_pytorch_grad_cam(case, batch):
    name, options, layer, reshape = case
    model = build(name, **options)
    images, labels = batch
    ours = upscaled(grad_cam(model, images, labels), (SIDE, SIDE))
    spare = spare_copy(model)
    theirs = library_grad_cam(
        spare, images, labels, layer(spare), reshape(spare) if reshape else None
    )
    assert float(theirs.amax()) > 0.9
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_the_map_before_an_average_pool_and_a_linear_layer_is_the_closed_form_cam(batch):
    model = build("test_resnet")
    images, labels = batch
    with torch.no_grad():
        features = model.forward_features(images)
    cam = torch.einsum("bchw,bc->bhw", features, model.fc.weight[labels]).clamp(min=0).detach()
    # The epsilon of a flat map weighs a little more on the mean of a gradient over pixels.
    torch.testing.assert_close(grad_cam(model, images, labels), scaled(cam), rtol=0, atol=1e-4)


def test_feature_maps_with_channels_last_are_understood(batch):
    model = build("swin_tiny_patch4_window7_224", img_size=SIDE, depths=(1, 1, 1, 1), window_size=2)
    images, labels = batch
    maps = grad_cam(model, images, labels)
    with torch.no_grad():
        features = model.forward_features(images)
    weights = model.get_classifier().weight[labels]
    cam = torch.einsum("bhwc,bc->bhw", features, weights).clamp(min=0).detach()
    torch.testing.assert_close(maps, scaled(cam), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_a_map_does_not_depend_on_its_batch(name, batch):
    model = build(name, **({"img_size": SIDE} if "vit" in name else {}))
    images, labels = batch
    whole = grad_cam(model, images, labels)
    alone = torch.cat(
        [grad_cam(model, images[i : i + 1], labels[i : i + 1]) for i in range(len(images))]
    )
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-4)


def state_of(model):
    """Return everything that could change: values, gradients, modes, hooks, random states."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "wants": [p.requires_grad for p in model.parameters()],
        "modes": [part.training for part in model.modules()],
        "hooks": [len(part._forward_hooks) for part in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002 - the state that must not move
        "records": torch.is_grad_enabled(),
    }


def prepared(name):
    """Return a model in the middle of training, partly frozen, with dropout and gradients."""
    options = {"img_size": SIDE} if "vit" in name else {}
    model = build(name, **options) if name == "plain" else build(name, drop_rate=0.3, **options)
    model.train()
    parts = list(model.children())
    parts[0].eval()
    for value in parts[0].parameters():
        value.requires_grad_(False)
    model(torch.randn(2, 3, SIDE, SIDE)).sum().backward()
    return model


@pytest.mark.parametrize("name", [*FAST, "plain"])
def test_the_classifier_and_all_random_states_stay_as_they_were(name, batch):
    model = prepared(name)
    before = state_of(model)
    grad_cam(model, *batch)
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAST)
def test_the_classifier_and_all_random_states_are_restored_after_an_error(name, batch):
    model = prepared(name)
    before = state_of(model)
    images, labels = batch
    with pytest.raises((RuntimeError, IndexError)):
        grad_cam(model, images, labels + CLASSES)
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAST)
def test_making_maps_does_not_change_training(name, batch):
    model = prepared(name)
    other = copy.deepcopy(model)
    losses = []
    for each, looks in ((model, True), (other, False)):
        each.zero_grad()
        torch.manual_seed(3)
        if looks:
            grad_cam(each, *batch)
        losses.append(each(batch[0]).square().mean())
        losses[-1].backward()
    assert torch.equal(*losses)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAST)
def test_maps_are_made_under_no_grad_and_with_frozen_parameters(name, batch):
    model = build(name, **({"img_size": SIDE} if "vit" in name else {}))
    expected = grad_cam(model, *batch)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(model, *batch), expected, rtol=0, atol=0)


def test_a_network_of_timm_without_a_feature_map_is_refused_by_name(batch):
    images, labels = batch
    with pytest.raises(ValueError, match="a feature map, ResNet has no part that makes one"):
        grad_cam(build("resnet18"), images[:, :, :32, :32], labels)  # its last map is one pixel


def test_a_network_without_a_feature_map_is_refused(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    with pytest.raises(ValueError, match="classifier must have a feature map, Sequential has no"):
        grad_cam(model, *batch)
