"""One run to which everything happens, others that are stopped early, and one that cannot go on."""

import os
import shutil
import signal
import time

import numpy as np
import pytest
from tiny_runs import (
    EPOCHS,
    GONE_S,
    IMAGES_AN_EPOCH,
    Story,
    generators_of,
    ledger_of,
    read_metrics,
    read_summary,
    run_folder,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow

KILLED, STOPPED, HUNG_UP, TORN, ENDED = range(5)
"""The launches of the story."""


@pytest.fixture(scope="module")
def story(pair, config):
    """One run with a cache of its own: everything that can happen to it, then its end."""
    cache = config.parent / "other_cache"
    story = Story(run_folder(config, "unlucky"), cache)

    def begin():
        return start(config, "unlucky", f"cache.path={cache}", "run.checkpoint_steps=5")

    launch = begin()
    wait_for(story.has_images(8), launch)
    launch.process.kill()
    killed = time.monotonic()
    wait_for(lambda: not generators_of(story.folder))
    story.gone_s = time.monotonic() - killed
    story.end(launch)

    launch = begin()
    wait_for(story.has_images(24), launch)
    os.kill(generators_of(story.folder)[0], signal.SIGKILL)
    wait_for(story.has_epochs(1), launch)
    story.stop(launch, signal.SIGINT)

    launch = begin()
    wait_for(story.has_epochs(2), launch)
    story.stop(launch, signal.SIGHUP)

    launch = begin()
    wait_for((story.folder / "checkpoints" / "step_00000030" / "complete.json").exists, launch)
    story.stop(launch, signal.SIGKILL)

    story.end(begin())
    return story


@pytest.fixture(scope="module")
def whole(pair, config):
    """The directory of the same run that was never stopped."""
    return run_folder(config, "seed0")


def test_a_killed_trainer_takes_the_generation_process_with_it(story):
    assert story.gone_s < GONE_S
    assert story.statuses[KILLED] == story.statuses[TORN] == -signal.SIGKILL


def test_a_killed_generation_process_is_replaced_and_counted(story):
    assert read_summary(story.folder)["generator_restarts"] == 1


def test_ctrl_c_and_a_closed_terminal_stop_with_a_status_of_their_own(story):
    for launch, number in ((STOPPED, signal.SIGINT), (HUNG_UP, signal.SIGHUP)):
        assert story.statuses[launch] == 128 + number
        assert "the same command goes on" in story.said[launch]
    assert story.said[HUNG_UP].count("the same command goes on") == 2  # on standard error, too
    assert "Traceback" not in "".join(story.said)


def test_the_same_command_goes_on_until_the_end(story):
    assert story.statuses[ENDED] == 0
    assert "resumed at epoch 3, step " in story.said[ENDED]
    assert [epoch["epoch"] for epoch in read_metrics(story.folder)] == [*range(EPOCHS)]


def test_an_epoch_cut_in_two_is_logged_as_one(story):
    epochs, summary = read_metrics(story.folder), read_summary(story.folder)
    for name in ("served_real", "served_fresh", "served_cached", "starved", "generated"):
        assert sum(epoch[name] for epoch in epochs) == summary[name]
    served = ("served_real", "served_fresh", "served_cached", "starved")
    assert [sum(epoch[name] for name in served) for epoch in epochs] == [IMAGES_AN_EPOCH] * EPOCHS


def test_no_launch_leaves_a_process(story):
    assert story.left == [[]] * 5


def test_it_ends_with_the_losses_of_an_uninterrupted_run_to_the_last_bit(story, whole):
    figures = ("train_loss", "val_top1", "step", "lr")
    told, expected = (
        [{name: epoch[name] for name in figures} for epoch in read_metrics(folder)]
        for folder in (story.folder, whole)
    )
    assert told == expected


def test_it_ends_with_the_weights_of_an_uninterrupted_run(story, whole):
    # The other one shared its cache with a second run at the time, which is no matter either.
    files = [folder / "model.safetensors" for folder in (story.folder, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_its_ledger_is_the_one_of_an_uninterrupted_run(story, whole):
    told, expected = ledger_of(story.folder), ledger_of(whole)
    assert np.array_equal(told[["index", "number"]], expected[["index", "number"]])


def test_a_run_that_waits_for_its_first_image_stops_at_once(pair, config):
    cache = config.parent / "cache_for_nobody"
    story = Story(run_folder(config, "hurried"), cache)
    launch = start(config, "hurried", f"cache.path={cache}")
    wait_for((story.folder / "ledger").is_dir, launch)  # made when the first batch is asked for
    story.stop(launch, signal.SIGTERM)
    assert story.statuses == [128 + signal.SIGTERM]
    assert story.left == [[]]
    assert (story.folder / "checkpoints" / "latest").read_text() == "step_00000000"


@pytest.mark.parametrize(
    ("number", "generate"),
    [(signal.SIGINT, "cpu"), (signal.SIGTERM, "[cpu, cpu]")],
)
def test_a_stop_while_fine_tuning_leaves_its_checkpoints_and_nothing_else(
    config, number, generate, tmp_path
):
    story = Story(run_folder(config, f"tuning{number}"), tmp_path / "unused_cache")
    place = tmp_path / "tuned"
    wishes = [
        f"devices.generate={generate}",
        *("finetune.steps=100000", "finetune.checkpoint_steps=2"),
        *(f"finetune.path={place}", f"cache.path={story.cache}"),
    ]
    launch = start(config, story.folder.name, *wishes)
    wait_for(lambda: list(place.glob("*.unfinished/checkpoints/step_*")), launch)
    story.stop(launch, number)
    assert story.statuses == [128 + number]
    assert "Traceback" not in story.said[0]
    assert {path.suffix for path in place.iterdir()} == {".lock", ".unfinished"}
    (unfinished,) = place.glob("*.unfinished")
    assert [path.name for path in unfinished.iterdir()] == ["checkpoints"]


@pytest.fixture(scope="module")
def hopeless(pair, config, embedded_root):
    """A run whose generation process meets a source image that is damaged inside."""
    images = config.parent / "images"
    digits = embedded_root / "digits"
    for name in ("0", "1"):
        for number, path in enumerate(sorted((digits / "train" / name).iterdir())[:12]):
            (images / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, images / name / f"{number}.png")
    story = Story(run_folder(config, "hopeless"), config.parent / "cache_of_none")
    for path in images.rglob("*.png"):
        content = path.read_bytes()
        path.write_bytes(content[:60] + bytes(12) + content[72:])
    overrides = [f"data.source={images}", "finetune.enabled=false", f"cache.path={story.cache}"]
    always = ["mixing.synthetic_probability=1", "data.examples_per_class=null"]
    story.end(start(config, "hopeless", *overrides, *always))
    return story


def test_a_generation_process_that_cannot_go_on_ends_the_run_with_its_reason(hopeless):
    assert hopeless.statuses == [2]
    (line,) = [line for line in hopeless.said[0].splitlines() if line.startswith("error: ")]
    assert line.startswith("error: generation process: ")
    assert ".png cannot be read" in line
    assert "Traceback" not in hopeless.said[0]
    assert hopeless.left == [[]]


def test_what_was_trained_is_saved_when_the_generation_process_gives_up(hopeless):
    assert (hopeless.folder / "checkpoints" / "latest").is_file()
