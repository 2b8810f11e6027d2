import pytest

from online_aug.config_training import OptimConfig
from online_aug.training.schedule import learning_rate


def rates(**optim):
    return [
        learning_rate(OptimConfig(lr=0.1, **optim), step, total_steps=100, steps_per_epoch=10)
        for step in range(100)
    ]


def test_the_warm_up_is_a_line_from_near_zero_to_the_peak():
    assert rates(warmup_epochs=2)[:20] == pytest.approx([0.005 * n for n in range(1, 21)])


def test_the_cosine_falls_from_the_peak_through_the_middle_to_near_zero():
    found = rates(warmup_epochs=2)
    assert found[20] == pytest.approx(0.1)
    assert found[60] == pytest.approx(0.05)
    assert 0 < found[99] < 1e-4


def test_the_constant_schedule_stays_at_the_peak():
    assert set(rates(warmup_epochs=0, schedule="constant")) == {0.1}


def test_a_warm_up_longer_than_the_run_is_cut_by_its_end():
    assert rates(warmup_epochs=20)[-1] == pytest.approx(0.05)
