import pytest

from online_aug.reporting.live import Pace


def test_one_reading_says_nothing_about_speed() -> None:
    pace = Pace(100)
    pace.read(0.0, 0, 1, 64)
    assert (pace.images_per_s, pace.left_s) == (None, None)


def test_speed_and_time_left_follow_from_steady_readings() -> None:
    pace = Pace(100)
    for second in range(11):
        pace.read(float(second), 0, 2 * second, 128 * second)
    assert pace.images_per_s == pytest.approx(128)
    assert pace.left_s == pytest.approx(40)


def test_speed_forgets_what_was_more_than_a_few_seconds_ago() -> None:
    pace = Pace(100)
    for second in range(20):
        pace.read(float(second), 0, second, 10 * second)
    for second in range(20, 30):
        pace.read(float(second), 0, second, 190 + 50 * (second - 19))
    assert pace.images_per_s == pytest.approx(50)


def test_a_pause_between_epochs_is_no_drop_of_speed_but_costs_time() -> None:
    pace = Pace(20)
    for step in range(11):
        pace.read(float(step), 0, step, 10 * step)
    pace.read(20.0, 1, 11, 10)
    pace.read(21.0, 1, 12, 20)
    assert pace.images_per_s == pytest.approx(10)
    assert pace.left_s == pytest.approx(21 / 12 * 8)


def test_a_resumed_run_counts_only_its_own_time() -> None:
    pace = Pace(100)
    pace.read(0.0, 9, 90, 0)
    pace.read(5.0, 9, 95, 50)
    assert pace.left_s == pytest.approx(5)
