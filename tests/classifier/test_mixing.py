"""Mixup, CutMix and label smoothing of soft labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from online_aug.classifier.optim import mix_batch, smooth
from online_aug.config.training import OptimConfig

MIXUP, CUTMIX = OptimConfig(mixup=0.4), OptimConfig(cutmix=1.0)
BOTH = OptimConfig(mixup=0.4, cutmix=1.0)
BY_IMAGE = OptimConfig(mixup=0.4, cutmix=1.0, mix_by="image")


def flat_images(values):
    """Return images of one value each, so that a mixture shows its weights."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def mixed(labels, optim, seed, values=None):
    images = flat_images(values if values is not None else [float(i) for i in range(len(labels))])
    return mix_batch(images, labels, optim, np.random.default_rng(seed))


@given(
    size=st.integers(1, 9),
    classes=st.integers(2, 5),
    optim=st.sampled_from([MIXUP, CUTMIX, BOTH, BY_IMAGE]),
    seed=st.integers(0, 2**32 - 1),
)
def test_mixed_soft_labels_are_distributions(size, classes, optim, seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.rand(size, classes, generator=rng).softmax(1)
    _, soft = mixed(labels, optim, seed)
    assert soft.shape == labels.shape
    assert soft.dtype == torch.float32
    assert (soft >= 0).all()
    torch.testing.assert_close(soft.sum(1), torch.ones(size))


def test_batches_are_mixed_with_the_configured_probability():
    labels, optim = torch.eye(2), OptimConfig(cutmix=1.0, mix_probability=0.25)
    plain = sum(torch.equal(mixed(labels, optim, seed)[1], labels) for seed in range(200))
    assert 120 < plain < 175


def test_each_image_of_a_batch_can_be_mixed_for_itself():
    optim = OptimConfig(cutmix=1.0, mix_probability=0.5, mix_by="image")
    shares = [mixed(torch.eye(8), optim, seed)[1].diagonal() for seed in range(20)]
    assert 50 < (torch.cat(shares) == 1).sum() < 110  # each with its own chance
    assert max(len(batch.unique()) for batch in shares) > 3  # and a box of its own


@given(seed=st.integers(0, 2**32 - 1), optim=st.sampled_from([MIXUP, CUTMIX, BOTH]))
def test_labels_are_mixed_in_proportion_to_the_pixels(seed, optim):
    first, last = torch.tensor([0.7, 0.3, 0.0]), torch.tensor([0.0, 0.2, 0.8])
    images, soft = mixed(torch.stack([first, last]), optim, seed, values=[1.0, 0.0])
    lam = images[0].mean()  # what is left of the first image in the first mixture
    torch.testing.assert_close(soft[0], lam * first + (1 - lam) * last)
    torch.testing.assert_close(soft[1], lam * last + (1 - lam) * first)


def test_the_last_image_of_an_odd_batch_stays_as_it_is():
    labels = torch.eye(3)
    images, soft = mixed(labels, MIXUP, seed=0)
    assert torch.equal(images[2], flat_images([2.0])[0])
    assert torch.equal(soft[2], labels[2])


def test_without_mixing_the_batch_stays_as_it_is():
    labels = torch.eye(4)
    images, soft = mixed(labels, OptimConfig(), seed=0)
    assert torch.equal(images, flat_images([0.0, 1.0, 2.0, 3.0]))
    assert torch.equal(soft, labels)


def test_mixing_depends_only_on_the_generator():
    labels = torch.eye(4)
    first, _ = mixed(labels, BOTH, seed=1)
    np.random.seed(5)  # noqa: NPY002 - must not matter
    second, _ = mixed(labels, BOTH, seed=1)
    assert torch.equal(first, second)


@pytest.mark.parametrize("optim", [MIXUP, CUTMIX, BOTH])
def test_mixing_leaves_the_global_state_of_numpy_alone(optim):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    mixed(torch.eye(4), optim, seed=0)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@given(smoothing=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_smoothing_keeps_distributions_and_their_order(smoothing, seed):
    labels = torch.rand(3, 7, generator=torch.Generator().manual_seed(seed)).softmax(1)
    smoothed = smooth(labels, smoothing)
    torch.testing.assert_close(smoothed.sum(1), torch.ones(3))
    assert float(smoothed.min()) >= smoothing / 7 - 1e-6
    torch.testing.assert_close(
        smoothed - smoothed.mean(1, keepdim=True),
        (labels - labels.mean(1, keepdim=True)) * (1 - smoothing),
    )


def test_smoothing_does_not_change_its_input():
    labels = torch.eye(3)
    smooth(labels, 0.1)
    assert torch.equal(labels, torch.eye(3))


def test_tests_check_the_shapes_in_signatures():
    with pytest.raises(TypeCheckError):
        smooth(torch.zeros(3), 0.1)
