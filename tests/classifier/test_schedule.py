"""The learning rate of each step: warm-up, constant, cosine, and the schedules of timm."""

from itertools import pairwise

import pytest
import torch

from online_aug.classifier.optim import learning_rate
from online_aug.config.training import OptimConfig


def rates(**optim):
    return [
        learning_rate(OptimConfig(lr=0.1, **optim), step, total_steps=100, steps_per_epoch=10)
        for step in range(100)
    ]


def test_the_warm_up_rises_linearly_to_the_peak():
    assert rates(warmup_epochs=2)[:20] == pytest.approx([0.005 * n for n in range(1, 21)])


def test_the_cosine_falls_from_the_peak_to_near_zero():
    found = rates(warmup_epochs=2)
    assert found[20] == pytest.approx(0.1)
    assert found[60] == pytest.approx(0.05)
    assert 0 < found[99] < 1e-4


def test_the_constant_schedule_stays_at_the_peak():
    assert set(rates(warmup_epochs=0, schedule="constant")) == {0.1}


def test_a_warm_up_longer_than_the_run_ends_with_it():
    assert rates(warmup_epochs=20)[-1] == pytest.approx(0.05)


def test_the_cosine_ends_at_the_minimum_rate():
    found = rates(warmup_epochs=0, min_lr=0.02)
    assert found[50] == pytest.approx(0.06)
    assert 0.02 < found[99] < 0.0201


def test_the_step_schedule_decays_at_regular_epochs():
    found = rates(warmup_epochs=0, schedule="step", decay_epochs=[3], decay_rate=0.5)
    assert found[::30] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert found[29] == 0.1


def test_the_multistep_schedule_decays_after_the_given_epochs():
    found = rates(warmup_epochs=1, schedule="multistep", decay_epochs=[4, 7], decay_rate=0.01)
    assert found[9:40] == pytest.approx([0.1] * 31)
    assert found[40:70] == pytest.approx([0.001] * 30)
    assert found[70:] == pytest.approx([0.00001] * 30)


def test_the_warm_up_over_a_cosine_multiplies_its_first_steps():
    """As PyTorch's cosine under pytorch_warmup's linear dampening, which Diff-Mix's code has."""
    weight = torch.nn.Parameter(torch.zeros(1))
    stepped = torch.optim.SGD([weight], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepped, T_max=100)
    expected = []
    for step in range(100):
        expected.append(cosine.get_last_lr()[0] * min(1, (step + 1) / 20))
        stepped.step()
        cosine.step()
    assert rates(warmup_epochs=2, warmup="over") == pytest.approx(expected)


def test_a_warm_up_over_the_schedule_counts_the_images_left_over_at_the_end_of_an_epoch():
    """As Diff-Mix's code on CUB: 11,238 steps planned for 120 epochs, of which 11,160 are run."""
    optim, length = OptimConfig(lr=0.025, warmup_epochs=12, warmup="over"), 5994 / 64
    assert optim.counts_left_over
    assert not optim.model_copy(update={"schedule_by": "epoch"}).counts_left_over
    found = [
        learning_rate(optim, step, total_steps=int(120 * length), steps_per_epoch=length)
        for step in (0, 1122, 1123, 5619, 11159)
    ]
    expected = [2.226180e-05, 0.02439015, 0.02438907, 0.0125, 3.048163e-06]
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_schedule_by_epoch_is_that_of_pytorch_stepped_after_each():
    """As DiffuseMix's code trains: one rate for an epoch, half a cosine over all of them."""
    stepped = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepped, T_max=10)
    expected = []
    for _ in range(10):
        expected += [cosine.get_last_lr()[0]] * 10
        stepped.step()
        cosine.step()
    assert rates(warmup_epochs=0, schedule_by="epoch") == pytest.approx(expected)


def test_a_long_tail_warms_up_and_decays_by_epochs():
    chosen = {"warmup_epochs": 2, "schedule": "multistep", "decay_epochs": [7, 9]}
    found = rates(**chosen, decay_rate=0.01, schedule_by="epoch")
    by_epoch = [0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.001, 0.001, 0.00001]
    assert found == pytest.approx([rate for rate in by_epoch for _ in range(10)])


@pytest.mark.parametrize("schedule", ["poly", "tanh"])
def test_the_other_schedules_of_timm_fall_from_the_peak_to_the_minimum(schedule):
    found = rates(warmup_epochs=0, schedule=schedule, min_lr=0.01, decay_rate=0.9)
    assert found[0] == pytest.approx(0.1, rel=0.01)
    assert all(after <= before for before, after in pairwise(found))
    assert found[-1] == pytest.approx(0.01, rel=0.2)
