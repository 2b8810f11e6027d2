"""Classifiers are built by name, seeded, and loaded from weights that fit."""

import argparse

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

from online_aug.classifier.fit import check_fit
from online_aug.classifier.model import (
    build_classifier,
    check_classifier,
    check_pretrained,
    input_statistics,
)
from online_aug.config.training import ClassifierConfig
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


def test_further_arguments_reach_the_model_and_fit_its_weights(tmp_path):
    options = {"patch_size": 4, "drop_path_rate": 0.2}
    config = ClassifierConfig(name="test_vit", options=options)
    classifier = build_classifier(config, 3, image_size=32)
    assert classifier.patch_embed.proj.kernel_size == (4, 4)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(classifier.state_dict(), path)
    loaded = build_classifier(config.model_copy(update={"checkpoint": path}), 3, image_size=32)
    assert torch.equal(loaded.patch_embed.proj.weight, classifier.patch_embed.proj.weight)


@pytest.mark.parametrize("options", [{"patch_sise": 4}, {"channels": "x"}])
def test_arguments_that_the_model_does_not_take_are_refused_in_one_line(options):
    config = ClassifierConfig(name="test_resnet", options=options)
    with pytest.raises(UserError, match=r"^classifier\.name and classifier\.options must .*") as e:
        check_fit(config, 3, 32)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["drop_rate", "img_size", "num_classes", "pretrained"])
def test_arguments_that_other_keys_decide_are_refused(name):
    with pytest.raises(UserError, match=rf"^classifier\.options must not set {name}: "):
        check_classifier(ClassifierConfig(name="resnet18", options={name: 1}))


def test_a_resnet_can_begin_without_stride():
    shapes = [
        build(name="resnet18", small_stem=small).forward_features(torch.zeros(2, 3, 32, 32)).shape
        for small in (False, True)
    ]
    assert shapes == [(2, 512, 1, 1), (2, 512, 4, 4)]


def test_a_small_stem_is_refused_for_other_networks():
    with pytest.raises(UserError, match=r"^classifier\.small_stem must be false .* for test_vit$"):
        build(name="test_vit", small_stem=True)


def test_another_model_has_options_of_its_own():
    config = ClassifierConfig(name="resnet18", options={"stem_width": 32}, small_stem=True)
    other = config.helper("resnet34", None)
    assert (other.options, other.small_stem) == ({}, False)
    assert config.helper(None, None).options == {"stem_width": 32}


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


def saved(path, classifier, rename=str, drop=()):
    weights = {rename(name): value for name, value in classifier.state_dict().items()}
    torch.save({name: value for name, value in weights.items() if name not in drop}, path)
    return path


def notes_on(path, name="test_resnet"):
    return check_fit(ClassifierConfig(name=name, checkpoint=path), 3, 32)


def test_a_head_for_other_classes_is_left_out_and_told(tmp_path):
    other = build(num_classes=5)
    path = saved(tmp_path / "weights.pt", other)
    loaded, fresh = build(checkpoint=path), build()
    assert torch.equal(loaded.conv1[0].weight, other.conv1[0].weight)
    assert torch.equal(loaded.fc.weight, fresh.fc.weight)
    assert notes_on(path) == [
        f"classifier.checkpoint: {path} has no head for 3 classes; the head starts with new weights"
    ]


def test_a_file_without_a_head_is_loaded(tmp_path):
    path = saved(tmp_path / "weights.pt", other := build(), drop=("fc.weight", "fc.bias"))
    assert torch.equal(build(checkpoint=path).conv1[0].weight, other.conv1[0].weight)
    assert len(notes_on(path)) == 1


def test_where_a_head_is_needed_one_for_other_classes_is_refused(tmp_path):
    path = saved(tmp_path / "weights.pt", build(num_classes=5))
    config = ClassifierConfig(name="test_resnet", checkpoint=path)
    with pytest.raises(
        UserError, match=r"with 3 classes, .* differs in shape in fc\.bias|fc\.weight"
    ):
        build_classifier(config, 3, needs_head=True)


def test_tensors_of_other_names_are_taken_in_order_and_that_is_told(tmp_path):
    other = build(num_classes=5)
    path = saved(tmp_path / "weights.pt", other, rename=lambda name: f"_{name}")
    assert torch.equal(build(checkpoint=path).conv1[0].weight, other.conv1[0].weight)
    assert (
        "are not those of test_resnet; its tensors were taken in their order" in notes_on(path)[0]
    )


def test_known_names_in_other_places_are_never_taken_in_order(tmp_path):
    first, second = "layer1.0.bn1.weight", "layer1.0.bn1.bias"
    swapped = {first: second, second: first, "bn1.bias": "_bn1.bias"}
    path = saved(tmp_path / "weights.pt", build(), rename=lambda name: swapped.get(name, name))
    with pytest.raises(UserError, match=r"lacks bn1\.bias and has unknown _bn1\.bias"):
        build(checkpoint=path)


def test_fewer_tensors_of_other_names_are_refused(tmp_path):
    names = {"drop": ("_bn1.bias",), "rename": lambda name: f"_{name}"}
    with pytest.raises(UserError, match=r"lacks bn1\.bias"):
        build(checkpoint=saved(tmp_path / "weights.pt", build(), **names))


def test_a_checkpoint_of_timms_trainer_is_read_with_its_averaged_weights(tmp_path):
    path, average = (
        tmp_path / "model_best.pth.tar",
        build_classifier(ClassifierConfig(name="test_resnet"), 3, seed=9),
    )
    torch.save(
        {
            "args": argparse.Namespace(model="test_resnet", lr=0.1),
            "state_dict": build().state_dict(),
            "state_dict_ema": {f"module.{k}": v for k, v in average.state_dict().items()},
        },
        path,
    )
    assert torch.equal(build(checkpoint=path).fc.weight, average.fc.weight)
    assert notes_on(path) == []


def test_given_statistics_replace_those_of_the_model():
    assert input_statistics(build(mean=0.25, std=(0.1, 0.2, 0.3))) == (
        (0.25, 0.25, 0.25),
        (0.1, 0.2, 0.3),
    )


def test_another_model_has_statistics_of_its_own():
    config = ClassifierConfig(name="test_resnet", mean=0.25)
    assert config.helper(None, None).mean == (0.25, 0.25, 0.25)
    assert config.helper("test_vit", None).mean is None


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


def test_timm_s_weights_are_looked_for_before_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = ClassifierConfig(name="test_resnet", pretrained=True)
    with pytest.raises(UserError, match="classifier.pretrained must be false where the weights"):
        check_pretrained(wanted, 3, 32)
    check_pretrained(wanted.model_copy(update={"pretrained": False}), 3, 32)
