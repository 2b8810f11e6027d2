"""timm policies, colour jitter and random erasing depend on the seed and the settings alone."""

import random

import numpy as np
import pytest
import torch

from online_aug.data.settings import DataConfig
from online_aug.data.transforms import Colours, check_policy, train_transform
from online_aug.errors import UserError
from online_aug.seeding import torch_rng

POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m9-n3", "original-mstd0.5", "v0", "augmix-m3-w3"]
EACH = [
    *(Colours(policy=policy) for policy in POLICIES),
    Colours(jitter=0.4),
    Colours(erase=1.0),
    Colours(policy="rand-m9", jitter=0.4, erase=1.0),
]


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch_rng(0))


def test_default_colours_return_the_image_itself(image):
    assert Colours()(image, 0) is image


@pytest.mark.parametrize("colours", EACH, ids=str)
def test_the_result_depends_on_the_seed_and_not_on_global_states(colours, image):
    first = [colours(image, seed) for seed in range(6)]
    random.seed(5)
    torch.manual_seed(5)
    again = [colours(image, seed) for seed in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("colours", EACH, ids=str)
def test_global_states_and_the_input_stay_as_they_are(colours, image):
    copy = image.clone()
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    colours(image, 3)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert torch.equal(image, copy)


def test_erasing_fills_one_rectangle_with_noise(image):
    flat = torch.full_like(image, 77)
    changed = (Colours(erase=1.0)(flat, 1) != flat).any(0)
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    rectangle = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert 0 < int(rectangle) < 32 * 32
    assert changed.sum() > 0.95 * rectangle


def test_erasing_happens_as_often_as_its_probability(image):
    colours = Colours(erase=0.25)
    changed = sum(not torch.equal(colours(image, seed), image) for seed in range(400))
    assert 60 < changed < 140


def test_the_configuration_sets_the_colours_of_the_training_transform(image):
    data = DataConfig(image_size=32, auto_augment="rand-m9", colour_jitter=0.2, erase=0.5)
    assert train_transform(data).colours == Colours(policy="rand-m9", jitter=0.2, erase=0.5)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_of_timm_are_accepted(policy):
    check_policy(DataConfig(auto_augment=policy))


@pytest.mark.parametrize("policy", ["rand-m10-n4-inc1", "rand-m1-n4", "v0", "augmix-m10"])
def test_policies_run_at_any_magnitude(policy, image):
    assert all(Colours(policy=policy)(image, seed).shape == image.shape for seed in range(60))


@pytest.mark.parametrize("policy", ["rand-x9", "autoaugment", "v0-m9", "rand-m9.5", "-"])
def test_an_unknown_policy_is_refused_by_name(policy):
    with pytest.raises(UserError, match=f"data.auto_augment must be a policy .* got '{policy}'"):
        check_policy(DataConfig(auto_augment=policy))
