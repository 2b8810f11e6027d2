"""Classifiers are built by name, seeded, and loaded from weights that fit."""

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

from online_aug.classifier.model import build_classifier, input_statistics
from online_aug.config.sections import ClassifierConfig
from online_aug.errors import UserError


def build(num_classes=3, **config):
    return build_classifier(ClassifierConfig(**{"name": "test_resnet"} | config), num_classes)


def test_the_head_has_one_output_for_each_class():
    assert build(num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_transformer_of_fixed_size_is_built_for_the_image_size():
    config = ClassifierConfig(name="vit_tiny_patch16_224")
    classifier = build_classifier(config, 3, image_size=32).eval()
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_initial_weights_depend_on_the_seed_and_not_on_the_global_state():
    config = ClassifierConfig(name="test_resnet")
    torch.manual_seed(1)
    first = build_classifier(config, 3, seed=5).fc.weight
    torch.manual_seed(2)
    assert torch.equal(first, build_classifier(config, 3, seed=5).fc.weight)
    assert not torch.equal(first, build_classifier(config, 3, seed=6).fc.weight)


def test_building_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    build()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dropout_rate_reaches_the_model():
    assert build(drop_rate=0.4).drop_rate == 0.4


def test_the_statistics_are_those_of_the_model():
    assert input_statistics(build()) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_an_unknown_name_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"classifier\.name .* got 'resnet5O'; nearest: .*resnet50"):
        build(name="resnet5O")


def test_an_unknown_weights_tag_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"classifier\.name .*no_such_tag"):
        build(name="test_resnet.no_such_tag")


def test_the_error_for_weights_that_cannot_be_downloaded_suggests_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"give a file of weights as classifier\.checkpoint"):
        build(pretrained=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_from_a_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    weights = build_classifier(ClassifierConfig(name="test_resnet"), 3, seed=9).state_dict()
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(weights, path)
    loaded = build(checkpoint=path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_weights_for_another_number_of_classes_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(build(num_classes=5).state_dict(), path)
    with pytest.raises(
        UserError, match=r"with 3 classes, .* differs in shape in fc\.weight \(\(5, "
    ):
        build(checkpoint=path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(build(name="test_vit").state_dict(), path)
    with pytest.raises(UserError, match=r"lacks bn1.* and \d+ more and has unknown blocks\.0"):
        build(checkpoint=path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_file_without_weights_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("these are not weights")
    with pytest.raises(UserError, match="cannot read") as caught:
        build(checkpoint=path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_weights_is_named(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint must be a file of weights, got .*none\.pt"):
        build(checkpoint=tmp_path / "none.pt")
