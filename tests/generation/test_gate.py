"""The gate: blank images, the classifier's rule, CLIP's rule, and the models that they need."""

import shutil
from contextlib import closing
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from experiment_samples import make_experiment
from hypothesis import given
from hypothesis import strategies as st
from request_samples import make_request
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from online_aug.classifier.model import build_classifier
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.config.training import ClassifierConfig
from online_aug.data.transforms import fit_square
from online_aug.errors import UserError
from online_aug.experiment.images import SourceImages
from online_aug.generation import gate as gates
from online_aug.generation.clip import clip_score
from online_aug.generation.gate import (
    ClassRule,
    Gate,
    ScoreRule,
    classify_with,
    rejection,
)
from online_aug.producer.work import load_generator, work_of


@pytest.mark.parametrize(("level", "reason"), [(0.0, "black"), (0.5, "flat"), (1.0, "white")])
def test_an_image_of_one_colour_is_named_by_it(level, reason):
    assert rejection(torch.full((3, 16, 16), level)) == reason


def test_noise_of_less_than_a_grey_level_is_flat():
    image = 0.5 + 0.002 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert rejection(image) == "flat"


@given(st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 3 * 64 - 1))
def test_an_image_with_one_pixel_that_is_not_finite_is_rejected(value, place):
    image = torch.linspace(0, 1, 3 * 64)
    image[place] = value
    assert rejection(image.reshape(3, 8, 8)) == "not finite"


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 31)])
def test_an_image_with_contrast_passes(shape):
    assert rejection(torch.rand(shape, generator=torch.Generator().manual_seed(0))) is None


def test_a_small_dark_figure_on_white_passes():
    image = torch.ones(3, 64, 64)
    image[:, 20:30, 20:30] = 0
    assert rejection(image) is None


PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize(
    ("classes", "least", "is_met"),
    [({0}, 0.5, True), ({1}, 0.5, False), ({1, 2}, 0.44, True), ({2, 3}, 0.44, False)],
)
def test_both_classes_together_must_be_probable_enough(classes, least, is_met):
    assert ClassRule(min_probability=least).is_met(PROBABILITIES, classes) == is_met


@given(st.integers(1, 5), st.sets(st.integers(0, 9), min_size=1, max_size=2), st.integers(0, 9999))
def test_one_class_must_be_among_the_k_most_probable(k, classes, seed):
    rows = torch.rand(10, generator=torch.Generator().manual_seed(seed)).softmax(0)
    assert ClassRule(top_k=k).is_met(rows, classes) == bool(
        classes & set(rows.topk(k).indices.tolist())
    )


def test_the_prompt_s_class_alone_counts_if_it_is_asked_for():
    asked = make_request(source_label=0, target_label=3)
    rules = (ClassRule(top_k=1), ClassRule(top_k=1, only_target=True))
    gates_of = [Gate(lambda images: PROBABILITIES.expand(len(images), -1), rule) for rule in rules]
    assert [gate([asked], noise(1))[0].reason for gate in gates_of] == [None, "off-class"]


def noise(count):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_gate_without_a_classifier_measures_nothing():
    verdicts = Gate()([make_request()] * 2, noise(2))
    assert [(verdict.reason, verdict.scores) for verdict in verdicts] == [(None, {})] * 2


def test_an_image_of_neither_class_is_off_class_and_scored():
    asked = make_request(source_label=2, target_label=3)
    gate = Gate(
        lambda images: PROBABILITIES.expand(len(images), -1), ClassRule(min_probability=0.3)
    )
    (verdict,) = gate([asked], noise(1))
    assert verdict.reason == "off-class"
    assert verdict.scores == pytest.approx({"probability_source": 0.15, "probability_target": 0.05})


def test_the_classifier_sees_only_images_that_are_not_blank():
    images, seen = noise(3), []
    images[1] = 0

    def classify(shown):
        seen.append(shown)
        return PROBABILITIES.expand(len(shown), -1)

    verdicts = Gate(classify)([make_request()] * 3, images)
    assert [verdict.reason for verdict in verdicts] == [None, "black", None]
    torch.testing.assert_close(seen[0], images[[0, 2]])


def brightness(images):
    return images.mean(dim=(1, 2, 3))


NOISE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("level", "reason"), [(0.4, None), (0.6, "low CLIP score")])
def test_an_image_that_clip_scores_too_low_is_rejected_with_its_score(level, reason):
    gate = Gate(clip=ScoreRule(score=brightness, least=level))
    (verdict,) = gate([make_request()], NOISE)
    assert verdict.reason == reason
    assert verdict.scores == {"clip": pytest.approx(float(NOISE.mean()))}


def test_both_scores_are_kept_and_the_class_is_the_first_reason():
    clip = ScoreRule(score=brightness, least=2.0)
    opinion = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    gate = Gate(lambda images: opinion, ClassRule(min_probability=0.5), clip)
    (verdict,) = gate([make_request(source_label=0, target_label=1)], NOISE)
    assert verdict.reason == "off-class"
    assert set(verdict.scores) == {"probability_source", "probability_target", "clip"}


IMAGES = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def probability_by_hand(folder, image):
    """Return the probability of the first question, from both towers' embeddings."""
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    words = ["a photo with a bird on it", "a photo without a bird on it"]
    pixels = (image * 255).round().to(torch.uint8)
    seen = model.vision_model(**processor(images=pixels, return_tensors="pt")).pooler_output
    read = model.text_model(
        **processor(text=words, return_tensors="pt", padding=True)
    ).pooler_output
    picture = F.normalize(model.visual_projection(seen), dim=1)
    texts = F.normalize(model.text_projection(read), dim=1)
    return (model.logit_scale.exp() * picture @ texts.T).softmax(dim=1)[0, 0]


def test_the_score_is_the_probability_of_the_thing_against_its_absence(tiny_clip):
    scores = clip_score(tiny_clip, "bird", "cpu")(IMAGES)
    expected = torch.stack([probability_by_hand(tiny_clip, image) for image in IMAGES])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert scores.std() > 0


def test_another_thing_has_another_score(tiny_clip):
    bird, digit = (clip_score(tiny_clip, thing, "cpu")(IMAGES) for thing in ("bird", "digit"))
    assert (bird - digit).abs().max() > 1e-4


REFUSED = r"^gate\.clip must be a directory with a CLIP model and its processor in transformers' "


def test_a_folder_without_a_clip_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{REFUSED}format, got "):
        clip_score(tmp_path, "bird", "cpu")


def test_a_folder_with_another_kind_of_model_is_refused(tiny_model):
    with pytest.raises(UserError, match=f"{REFUSED}.*must be clip .*got 'clip_text_model'"):
        clip_score(tiny_model / "text_encoder", "bird", "cpu")


def test_a_clip_model_that_lacks_weights_is_refused(tiny_clip, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(tiny_clip, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{REFUSED}.*1 of its weights are missing"):
        clip_score(folder, "bird", "cpu")


def classifier_of(classes=2):
    return build_classifier(ClassifierConfig(name="test_resnet"), classes, seed=3).eval()


@pytest.fixture
def weights(tmp_path):
    """Write the weights of a classifier of two classes."""
    path = tmp_path / "judge.safetensors"
    safetensors.torch.save_file(classifier_of().state_dict(), path)
    return path


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    def make(**gate):
        return make_experiment(tmp_path, tiny_model, finetune={"enabled": False}, gate=gate)

    return make


def build_gate(experiment):
    sources = SourceImages(experiment.splits.train, experiment.data.sources)
    return gates.build_gate(experiment.config, 2, sources.by_digest, experiment.data.digests, "cpu")


def check_gate(experiment):
    gates.check_gate(experiment.config, 2, "cpu")


def test_the_classifier_has_the_weights_of_the_file(experiment_of, weights):
    gate = build_gate(experiment_of(classifier=weights, min_probability=0.1, image_size=32))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    asked = [make_request(source_label=0, target_label=1)] * 2
    expected = classify_with(classifier_of(), 32)(image)
    found = [list(verdict.scores.values()) for verdict in gate(asked, image)]
    torch.testing.assert_close(torch.tensor(found), expected)


@pytest.mark.parametrize(
    "other",
    [
        {"min_probability": 0.2},
        {"top_k": 1},
        {"shows": "target"},
        {"image_size": 48},
        {"name": "test_resnet.r160_in1k"},
    ],
)
def test_another_rule_or_size_or_model_asks_for_other_images(experiment_of, weights, other):
    usual = {"classifier": weights, "min_probability": 0.1}
    keys = [{r.key for r in experiment_of(**gate).plan} for gate in ({}, usual, usual | other)]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]


@pytest.mark.slow
def test_generated_images_are_scored_by_the_configured_classifier(experiment_of, weights):
    experiment = experiment_of(classifier=weights, top_k=2)
    work = work_of(experiment)
    with closing(load_generator(experiment)) as generator:
        generator.submit(work.plan[:2], work.prepare)
        finished = []
        while generator.in_flight:
            finished += generator.step()
    assert all(sum(one.verdict.scores.values()) > 0 for one in finished)


def test_the_gate_s_settings_survive_the_run_s_own_file(experiment_of, weights, tmp_path):
    experiment = experiment_of(classifier=weights, top_k=2)
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(experiment.config))
    assert load_config(path) == experiment.config


def test_a_classifier_of_other_classes_is_refused_by_name(experiment_of, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(classifier_of(classes=7).state_dict(), path)
    message = r"gate\.classifier must hold the weights of test_resnet with 2 classes"
    with pytest.raises(UserError, match=message):
        check_gate(experiment_of(classifier=path, top_k=1))


def test_a_classifier_with_an_unknown_name_is_refused(experiment_of, weights):
    with pytest.raises(UserError, match=r"gate\.name must be a timm model, got 'resnet_x'"):
        check_gate(experiment_of(classifier=weights, top_k=1, name="resnet_x"))


def test_a_missing_file_of_weights_is_refused(experiment_of, tmp_path):
    with pytest.raises(UserError, match=r"gate\.classifier must be a file of weights"):
        check_gate(experiment_of(classifier=tmp_path / "none.safetensors", top_k=1))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"top_k": 3}, "gate.classifier must be self or a file of weights"),
        ({"classifier": "x.safetensors"}, "gate.min_probability or gate.top_k must be set"),
    ],
)
def test_a_rule_needs_a_classifier_and_a_classifier_a_rule(experiment_of, gate, message):
    with pytest.raises(UserError, match=message):
        check_gate(experiment_of(**gate))


def test_clip_drops_images_that_score_below_a_part_of_the_training_images(experiment_of, tiny_clip):
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


def test_clip_without_a_metaclass_is_refused(tmp_path, tiny_model, tiny_clip):
    experiment = make_experiment(tmp_path, tiny_model, gate={"clip": tiny_clip})
    silent = experiment.config.data.model_copy(update={"metaclass": " "})
    experiment = replace(experiment, config=experiment.config.model_copy(update={"data": silent}))
    with pytest.raises(UserError, match=r"data\.metaclass must say what CLIP is to look for"):
        check_gate(experiment)


def test_a_clip_that_cannot_be_loaded_is_refused_before_anything_starts(experiment_of, tmp_path):
    with pytest.raises(UserError, match=r"gate\.clip must be a directory with a CLIP model"):
        check_gate(experiment_of(clip=tmp_path))
