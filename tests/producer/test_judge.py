"""The classifier that judges generated images, from its file to the verdict."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from experiment_samples import make_experiment
from request_samples import make_request

from cache import Store
from online_aug.classifier.model import build_classifier
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.config.training import ClassifierConfig
from online_aug.data.transforms import fit_square
from online_aug.errors import UserError
from online_aug.experiment.images import SourceImages
from online_aug.generation import gate as gates
from online_aug.generation.gate import classify_with
from online_aug.producer.__main__ import make_images
from online_aug.producer.messages import Placement


def classifier_of(classes=2):
    return build_classifier(ClassifierConfig(name="test_resnet"), classes, seed=3).eval()


@pytest.fixture
def weights(tmp_path):
    """A judge's file."""
    path = tmp_path / "judge.safetensors"
    safetensors.torch.save_file(classifier_of().state_dict(), path)
    return path


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    def make(**gate):
        return make_experiment(tmp_path, tiny_model, finetune={"enabled": False}, gate=gate)

    return make


def build_gate(experiment):
    sources = SourceImages(experiment.splits.train, experiment.sources)
    return gates.build_gate(experiment.config, 2, sources.by_digest, experiment.digests, "cpu")


def check_gate(experiment):
    gates.check_gate(experiment.config, 2, "cpu")


def test_the_judge_s_opinion_is_that_of_the_weights_in_the_file(experiment_of, weights):
    gate = build_gate(experiment_of(classifier=weights, min_probability=0.1, image_size=32))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    asked = [make_request(source_label=0, target_label=1)] * 2
    expected = classify_with(classifier_of(), 32)(image)
    found = [list(verdict.scores.values()) for verdict in gate(asked, image)]
    torch.testing.assert_close(torch.tensor(found), expected)


@pytest.mark.parametrize(
    "other",
    [{"min_probability": 0.2}, {"top_k": 1}, {"image_size": 48}, {"name": "test_resnet.r160_in1k"}],
)
def test_another_rule_or_another_look_asks_for_other_images(experiment_of, weights, other):
    usual = {"classifier": weights, "min_probability": 0.1}
    keys = [{r.key for r in experiment_of(**gate).plan} for gate in ({}, usual, usual | other)]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]


def test_the_generation_process_scores_what_it_stores(experiment_of, weights, tmp_path):
    experiment = experiment_of(classifier=weights, top_k=2)
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(experiment.config))
    assert load_config(path) == experiment.config

    class Trainer:
        served, is_stopping, saliency_version, class_losses = 0, False, None, None
        told = []

        def tell(self, status):
            self.told.append(status)

    make_images(path, Placement(device="cpu", threads=1), Trainer())
    with Store(experiment.config.cache.path) as store:
        records = [store.get(request.key) for request in experiment.plan]
    assert all(sum(record.scores.values()) > 0 for record in records)


def test_a_judge_of_other_classes_is_refused_by_name(experiment_of, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(classifier_of(classes=7).state_dict(), path)
    message = r"gate\.classifier must hold the weights of test_resnet with 2 classes"
    with pytest.raises(UserError, match=message):
        check_gate(experiment_of(classifier=path, top_k=1))


def test_a_judge_of_an_unknown_name_is_refused(experiment_of, weights):
    with pytest.raises(UserError, match=r"gate\.name must be a timm model, got 'resnet_x'"):
        check_gate(experiment_of(classifier=weights, top_k=1, name="resnet_x"))


def test_a_missing_file_is_refused(experiment_of, tmp_path):
    with pytest.raises(UserError, match=r"gate\.classifier must be a file of weights"):
        check_gate(experiment_of(classifier=tmp_path / "none.safetensors", top_k=1))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"top_k": 3}, "gate.classifier must be a file of weights"),
        ({"classifier": "x.safetensors"}, "gate.min_probability or gate.top_k must be set"),
    ],
)
def test_a_rule_needs_a_judge_and_a_judge_a_rule(experiment_of, gate, message):
    with pytest.raises(UserError, match=message):
        check_gate(experiment_of(**gate))


def test_clip_drops_what_it_scores_below_a_part_of_the_training_images(experiment_of, tiny_clip):
    experiment = experiment_of(clip=tiny_clip, clip_drop=0.25)
    check_gate(experiment)
    train = experiment.splits.train
    images = torch.stack(
        [
            fit_square(torch.from_numpy(train.load(place)).permute(2, 0, 1), 64) / 255
            for place in range(8)
        ]
    )
    verdicts = build_gate(experiment)([make_request()] * 8, images)
    scores = [verdict.scores["clip"] for verdict in verdicts]
    dropped = [verdict.reason == "low CLIP score" for verdict in verdicts]
    assert sum(dropped) == 2
    assert max(s for s, d in zip(scores, dropped, strict=True) if d) == sorted(scores)[1]


def test_clip_and_its_rule_are_part_of_the_request(experiment_of, tiny_clip, tmp_path):
    def keys(**gate):
        return {request.key for request in experiment_of(**gate).plan}

    assert not keys() & keys(clip=tiny_clip)
    assert not keys(clip=tiny_clip) & keys(clip=tiny_clip, clip_drop=0.2)
    assert keys(clip_drop=0.2) == keys()


def test_clip_without_a_word_for_what_to_look_for_is_refused(tmp_path, tiny_model, tiny_clip):
    experiment = make_experiment(tmp_path, tiny_model, gate={"clip": tiny_clip})
    silent = experiment.config.data.model_copy(update={"metaclass": " "})
    experiment = replace(experiment, config=experiment.config.model_copy(update={"data": silent}))
    with pytest.raises(UserError, match=r"data\.metaclass must say what CLIP is to look for"):
        check_gate(experiment)


def test_a_clip_that_cannot_be_loaded_is_refused_before_anything_starts(experiment_of, tmp_path):
    with pytest.raises(UserError, match=r"gate\.clip must be a directory with a CLIP model"):
        check_gate(experiment_of(clip=tmp_path))
