"""A cache filled ahead of training, in two calls, and a run that trains on it alone."""

import signal

import pytest
from tiny_runs import (
    PLANNED,
    Launch,
    count_images,
    processes_of,
    read_summary,
    run_folder,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow


def places(cache):
    """A cache and a fine-tuning of its own: other tests see how theirs is made."""
    return [f"cache.path={cache}", f"finetune.path={cache.with_name('filled_finetuned')}"]


def fill(config, cache):
    return Launch("-m", "online_aug", "fill", config, *places(cache))


@pytest.fixture(scope="module")
def calls(config):
    """Two calls, the first interrupted; what was in the cache after each."""
    cache = config.parent / "filled_cache"
    counts = []
    first = fill(config, cache)
    wait_for(lambda: count_images(cache), first)
    first.process.send_signal(signal.SIGINT)
    first.wait()
    counts.append(count_images(cache))
    second = fill(config, cache).succeed()
    counts.append(count_images(cache))
    return [first, second], counts, cache


def test_ctrl_c_ends_the_first_call_with_what_is_finished_stored(calls):
    (first, _), (after_first, _), cache = calls
    assert first.process.returncode == 128 + signal.SIGINT, first.err
    assert first.out.splitlines()[-1] == "interrupted: the same command goes on"
    assert f"{after_first} of the plan's {PLANNED} images" in first.out
    assert "Traceback" not in first.err
    assert processes_of("online_aug", "fill", cache) == []


def test_the_same_command_makes_the_rest(calls):
    (_, second), (after_first, after_second), _ = calls
    assert 0 < after_first < after_second == PLANNED
    assert f"{PLANNED - after_first}/{PLANNED - after_first} in" in second.out


def test_a_run_without_a_generator_uses_all_of_it(calls, config):
    cache = calls[2]
    start(config, "filled", *places(cache), "devices.generate=none", "run.epochs=3").succeed()
    summary = read_summary(run_folder(config, "filled"))
    assert summary["generated"] == 0
    assert summary["reused"] == PLANNED
    assert summary["served_cached"] > 0
    assert summary["starved"] == 0
    assert not (run_folder(config, "filled") / "generator.log").exists()
