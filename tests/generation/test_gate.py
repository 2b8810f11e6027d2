import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from request_samples import make_request

from online_aug.generation.gate import ClassRule, Gate, ScoreRule, rejection


@pytest.mark.parametrize(("level", "reason"), [(0.0, "black"), (0.5, "flat"), (1.0, "white")])
def test_an_image_of_one_colour_is_named_by_it(level, reason):
    assert rejection(torch.full((3, 16, 16), level)) == reason


def test_noise_of_less_than_a_grey_level_is_flat():
    image = 0.5 + 0.002 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert rejection(image) == "flat"


@given(st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 3 * 64 - 1))
def test_one_pixel_that_is_no_number_is_enough(value, place):
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
def test_the_classes_of_the_label_must_be_probable_together(classes, least, is_met):
    assert ClassRule(min_probability=least).is_met(PROBABILITIES, classes) == is_met


@given(st.integers(1, 5), st.sets(st.integers(0, 9), min_size=1, max_size=2), st.integers(0, 9999))
def test_top_k_asks_for_one_class_among_the_k_most_probable(k, classes, seed):
    rows = torch.rand(10, generator=torch.Generator().manual_seed(seed)).softmax(0)
    assert ClassRule(top_k=k).is_met(rows, classes) == bool(
        classes & set(rows.topk(k).indices.tolist())
    )


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


def test_the_classifier_is_shown_only_what_is_an_image():
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


def test_of_two_judges_both_scores_are_kept_and_the_class_comes_first():
    clip = ScoreRule(score=brightness, least=2.0)
    opinion = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    gate = Gate(lambda images: opinion, ClassRule(min_probability=0.5), clip)
    (verdict,) = gate([make_request(source_label=0, target_label=1)], NOISE)
    assert verdict.reason == "off-class"
    assert set(verdict.scores) == {"probability_source", "probability_target", "clip"}
