"""What a network cannot be trained on is refused before a run, with the key and a way out."""

import pytest
import torch

from online_aug.classifier import fit
from online_aug.classifier.fit import check_fit
from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError

WRONG_SIZES = [
    ("test_coatnet", 16, "32"),
    ("levit_128s", 250, "224 and 256"),  # shapes that do not fit
    ("halonet26t", 282, "256"),  # an assertion without a word
    ("hiera_tiny_224", 250, "224 and 256"),  # built for one size
    ("mvitv2_tiny", 250, "224 and 256"),  # wrong only in values
    ("coat_tiny", 250, "224 and 256"),
    ("crossvit_tiny_240", 250, "240"),
    ("dla102", 250, "224 and 256"),
    ("efficientformer_l1", 256, "224"),
    ("gcvit_xxtiny", 250, "224 and 256"),
    ("hrnet_w18_small", 250, "224 and 256"),
    ("tresnet_l", 250, "224 and 256"),
    ("maxvit_pico_rw_256", 282, "256 and 288"),
    ("naflexvit_base_patch16_gap", 410, "384 and 416"),
]
QUICK = 1
WRONG_SIZES[QUICK:] = [pytest.param(*case, marks=pytest.mark.slow) for case in WRONG_SIZES[QUICK:]]


def check(name, size, batch_size=2, **config):
    check_fit(ClassifierConfig(name=name, **config), 5, size, batch_size)


@pytest.mark.parametrize(("name", "size", "works"), WRONG_SIZES)
def test_a_size_that_a_network_cannot_take_is_refused_with_sizes_that_work(name, size, works):
    pattern = rf"data\.image_size must be a size that {name} can take, got {size}: .*work: {works}"
    with pytest.raises(UserError, match=pattern) as caught:
        check(name, size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 32), pytest.param("levit_128s", 224, marks=pytest.mark.slow)]
)
def test_one_image_at_a_time_is_refused_if_a_norm_would_see_one_value(name, size):
    check(name, size)
    with pytest.raises(UserError, match=r"optim\.batch_size, divided by .* 2 for \w+, got 1: Exp"):
        check(name, size, batch_size=1)


@pytest.mark.parametrize(
    ("name", "size", "config"),
    [("test_resnet", 64, {}), ("test_vit", 32, {}), ("test_resnet", 32, {"head_only": True})],
)
def test_one_image_at_a_time_is_enough_for_other_networks(name, size, config):
    check(name, size, batch_size=1, **config)


def test_a_network_that_cannot_be_built_is_blamed_on_its_name():
    with pytest.raises(UserError, match=r"classifier\.name .*no_such_tag"):
        check("test_resnet.no_such_tag", 32)


def test_nothing_is_computed_on_the_cpu_unless_values_decide(monkeypatch):
    devices = []
    real = fit.create
    monkeypatch.setattr(
        fit, "create", lambda *a: (devices.append(torch.get_default_device().type), real(*a))[1]
    )
    check("test_resnet", 32)
    assert devices == ["meta"]
    check("test_coatnet", 64)  # has relative positions, which are looked up
    assert devices == ["meta", "meta", "cpu"]


def test_the_random_state_stays_as_it_was():
    before = torch.get_rng_state()
    check("test_resnet", 32)
    assert torch.equal(torch.get_rng_state(), before)
