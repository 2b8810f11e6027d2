"""Adversarial noise and corruptions: bounded, growing with severity, worse for the classifier."""

import pytest
import torch

from online_aug.reporting.disturbed import (
    ATTACKS,
    CORRUPTIONS,
    SEVERITIES,
    fgsm,
    logits_of,
    pgd,
)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_more_the_more_severe_it_is(name):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1, 3, 64, 64), generator=rng).to(torch.uint8)
    changes = [
        (CORRUPTIONS[name](images, severity).float() - images.float()).abs().mean()
        for severity in range(SEVERITIES)
    ]
    assert 0 < changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("name", ATTACKS)
def test_adversarial_noise_raises_the_loss_and_stays_within_its_bound(name):
    torch.manual_seed(0)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    classifier.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    images = torch.randint(20, 235, (6, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(6) % 4
    moved = ATTACKS[name](classifier, images, labels, 4)
    assert (moved - images.float()).abs().max() <= 4 + 1e-4
    losses = [
        torch.nn.functional.cross_entropy(logits_of(classifier, shown), labels)
        for shown in (images.float(), moved)
    ]
    assert losses[1] > losses[0]
    assert ((moved >= 0) & (moved <= 255)).all()


def test_on_a_curved_loss_ten_steps_find_more_than_one():
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(48, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)]
    classifier = torch.nn.Sequential(*layers)
    classifier.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    images = torch.randint(20, 235, (64, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(64) % 4
    losses = [
        float(torch.nn.functional.cross_entropy(logits_of(classifier, shown), labels).detach())
        for shown in (attack(classifier, images, labels, 16) for attack in (fgsm, pgd))
    ]
    assert losses[1] > losses[0]
