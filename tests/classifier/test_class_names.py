"""Weights know the classes they were trained for, and are refused for others."""

import pytest
import safetensors.torch
import torch
from experiment_samples import make_experiment

from online_aug.classifier.class_names import (
    check_class_names,
    class_metadata,
    class_names_in,
)
from online_aug.classifier.model import build_classifier
from online_aug.cli import evaluate
from online_aug.config.loading import resolved_yaml
from online_aug.errors import UserError


def write_weights(path, names, config):
    weights = build_classifier(config.classifier, len(names)).state_dict()
    safetensors.torch.save_file(weights, path, class_metadata(names))
    return path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, class_metadata(["cat", "dog"]))
    return path


def test_a_file_of_weights_says_its_classes(weights):
    assert class_names_in(weights) == ["cat", "dog"]
    check_class_names(weights, "gate.classifier", ["cat", "dog"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["dog", "tom"], "label 0 was 'cat' and is 'dog' now"),
        (["cat", "dog", "emu"], "there were 2 classes and are 3 now"),
    ],
)
def test_weights_for_other_classes_are_refused_by_name(weights, names, said):
    with pytest.raises(UserError, match=f"gate.classifier must know the classes .* {said}; name"):
        check_class_names(weights, "gate.classifier", names)


@pytest.mark.parametrize("name", ["other.pt", "missing.safetensors"])
def test_a_file_that_says_no_classes_is_left_to_the_reader_of_weights(tmp_path, name):
    assert class_names_in(tmp_path / name) is None


def test_a_renamed_class_folder_is_refused_by_evaluate_judge_and_teacher(tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model)
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(resolved_yaml(experiment.config))
    path = write_weights(folder / "model.safetensors", ["crow", "jay"], experiment.config)
    evaluate.main([str(folder), "--json"])
    for split in ("train", "val", "test"):
        place = tmp_path / "images" / split
        (place / "crow").rename(place / "raven")
    said = "label 0 was 'crow' and is 'jay' now"
    with pytest.raises(UserError, match=said):
        evaluate.main([str(folder)])
    judge = {"classifier": path, "top_k": 1}
    sgd_mix = {"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5}
    for sections in (
        {"gate": judge},
        {"method": sgd_mix, "saliency": {"method": "grad_cam", "teacher": path}},
    ):
        with pytest.raises(UserError, match=said):
            make_experiment(tmp_path, tiny_model, **sections).check(generates=True)
