"""The measurements of large sets: what they add up, and that they run."""

import re
import threading

import pytest

from benchmarks import start_up
from benchmarks.data import planning, pool


def test_an_inner_stage_stops_the_clock_of_the_outer_one(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(start_up, "clock_s", lambda: next(now))
    clock = start_up.Stopwatch()
    with clock.stage("checks"), clock.stage("data"):
        pass
    assert clock.seconds == {"other": 1.0, "checks": 2.0 + 8.0, "data": 4.0}


def test_only_the_main_thread_is_timed(monkeypatch):
    now = iter([0.0])
    monkeypatch.setattr(start_up, "clock_s", lambda: next(now))
    clock = start_up.Stopwatch()

    def work():
        with clock.stage("data"):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not clock.seconds


def start(first_step_s, mb):
    return {"events": {"first step": first_step_s}, "mb": {"rank": mb, "generation process": 500}}


@pytest.mark.parametrize(
    ("many", "status", "said"),
    [
        (start(12.0, 900), 0, "1.20 times as long, rank +200 MB, generation process +0 MB"),
        (start(16.0, 900), 1, "missed"),
        (start(12.0, 1100), 1, "missed"),
    ],
)
def test_a_start_that_grows_with_the_data_misses_the_limit(many, status, said, capsys):
    assert start_up._verdict(start(10.0, 700), many) == status
    assert said in capsys.readouterr().out


def test_the_pool_is_measured_with_few_and_many_images(capsys):
    pool.main(["--few", "10", "--many", "50", "--pooled", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"take a fresh image: .* us of 10, .* us of 50, .* times", lines[0])
    assert re.fullmatch(r"take a fresh image of one source: .* of 10, .* of 50, .*", lines[1])
    assert lines[2].startswith("look up and offer 100 images: ")


def test_a_plan_is_measured_beside_a_list_of_its_requests(capsys):
    planning.main(["--images", "500", "--records", "60"])
    said = capsys.readouterr().out
    assert "diff_mix, 5,000 requests of 500 images" in said
    assert "images of the plan in a cache of 60" in said
