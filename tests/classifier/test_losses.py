"""The losses for long tails equal their definitions, also for labels that are mixtures."""

import pytest
import torch
import torch.nn.functional as F

from online_aug.classifier.losses import ClassifierLoss, effective_weights, margins
from online_aug.classifier.model import build_classifier
from online_aug.classifier.replaced_parts import COSINE_SCALE
from online_aug.config.training import ClassifierConfig, OptimConfig
from online_aug.errors import UserError

SIZES = [100, 10, 1]
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 10
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0])
HARD = F.one_hot(CLASSES, 3).float()


def loss_of(labels=HARD, epoch=0, sizes=SIZES, **optim):
    return ClassifierLoss(OptimConfig(**optim), sizes, torch.device("cpu"))(LOGITS, labels, epoch)


def ldam(weight=None):
    """LDAM as its paper writes it: the true class's logit is lowered by a scaled margin."""
    lowered = LOGITS - HARD * COSINE_SCALE * margins(torch.tensor(SIZES).double()).float()
    return F.cross_entropy(lowered, CLASSES, weight=weight)


def test_margins_fall_with_the_fourth_root_of_the_size_and_the_largest_is_a_half():
    found = margins(torch.tensor([16.0, 1.0, 81.0]))
    assert found.tolist() == pytest.approx([0.25, 0.5, 0.5 / 3])


def test_balanced_softmax_weighs_each_exponential_by_the_size_of_its_class():
    powers = LOGITS.double().exp() * torch.tensor(SIZES)
    expected = -(powers[range(6), CLASSES] / powers.sum(1)).log().mean()
    assert float(loss_of(loss="balanced_softmax")) == pytest.approx(float(expected), rel=1e-5)


def test_classes_of_one_size_make_balanced_softmax_the_cross_entropy():
    found = loss_of(loss="balanced_softmax", sizes=[7, 7, 7])
    assert float(found) == pytest.approx(float(F.cross_entropy(LOGITS, CLASSES)), rel=1e-5)


def test_ldam_lowers_the_logit_of_the_true_class():
    assert float(loss_of(loss="ldam")) == pytest.approx(float(ldam()), rel=1e-5)


def test_ldam_of_a_mixture_is_the_mixture_of_its_losses():
    mixed = 0.3 * HARD + 0.7 * HARD.flip(1)
    first, second = (float(loss_of(labels, loss="ldam")) for labels in (HARD, HARD.flip(1)))
    assert float(loss_of(mixed, loss="ldam")) == pytest.approx(0.3 * first + 0.7 * second, rel=1e-5)


def test_ldam_is_exact_for_an_image_that_is_recognised_for_certain():
    logits = torch.tensor([[30.0, -30.0, -30.0]], requires_grad=True)
    loss = ClassifierLoss(OptimConfig(loss="ldam"), [1, 1, 1], torch.device("cpu"))
    found = loss(logits, HARD[:1], 0)
    found.backward()
    expected = F.cross_entropy(torch.tensor([[15.0, -30.0, -30.0]]).double(), CLASSES[:1])
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-3)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cross_entropy", "ldam"])
def test_losses_are_weighed_by_class_only_after_the_given_epochs(name):
    weight = effective_weights(torch.tensor(SIZES).double()).float()
    assert weight.sum() == pytest.approx(3)
    assert weight.tolist() == sorted(weight.tolist())
    before, after = (loss_of(loss=name, reweight_after=160, epoch=e) for e in (159, 160))
    assert torch.equal(before, loss_of(loss=name))
    expected = ldam(weight) if name == "ldam" else F.cross_entropy(LOGITS, CLASSES, weight=weight)
    assert float(after) == pytest.approx(float(expected), rel=1e-5)


def test_a_cosine_head_has_scaled_cosines_as_logits():
    network = build_classifier(ClassifierConfig(name="test_resnet", head="cosine"), 3).eval()
    images = torch.rand(2, 3, 32, 32)
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    cosines = F.cosine_similarity(features[:, None], network.fc.weight[None], dim=2)
    torch.testing.assert_close(network(images), COSINE_SCALE * cosines)


def test_a_cosine_head_is_refused_where_the_last_layer_is_no_linear_one():
    config = ClassifierConfig(name="regnetz_005", head="cosine")
    assert build_classifier(config, 3) is not None
    with pytest.raises(UserError, match=r"^classifier\.head must be linear for levit_128s, "):
        build_classifier(ClassifierConfig(name="levit_128s", head="cosine"), 3)
