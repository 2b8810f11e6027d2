"""Runs that are stopped, killed and started again, on one device and on two."""

import os
import shutil
import signal
import time
from dataclasses import dataclass, field

import pytest
from tiny_runs import (
    EPOCHS,
    IMAGES_AN_EPOCH,
    PLANNED,
    count_images,
    generators_of,
    processes_of,
    read_metrics,
    read_summary,
    run_folder,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow

GONE_S = 5.0


@dataclass
class Story:
    """What became of one run."""

    folder: object
    cache: object
    statuses: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    left: list[list[int]] = field(default_factory=list)
    gone_s: float = float("inf")

    def end(self, launch):
        """Note how a launch ended, and what it left."""
        self.statuses.append(launch.wait())
        self.said.append(launch.out + launch.err)
        self.left.append(processes_of(self.folder.parents[1], self.folder.name))

    def has_images(self, count):
        return lambda: count_images(self.cache) >= count

    def has_epochs(self, count):
        return lambda: len(read_metrics(self.folder)) >= count


def stop(story, launch, number):
    launch.process.send_signal(number)
    story.end(launch)


@pytest.fixture(scope="module")
def story(pair, config):
    """One run with a cache of its own: everything that can happen to it, then its end."""
    cache = config.parent / "other_cache"
    story = Story(run_folder(config, "unlucky"), cache)

    def begin():
        return start(config, "unlucky", f"cache.path={cache}")

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
    stop(story, launch, signal.SIGINT)

    launch = begin()
    wait_for(story.has_epochs(2), launch)
    stop(story, launch, signal.SIGTERM)

    story.end(begin())
    return story


def test_a_killed_trainer_takes_the_generation_process_with_it(story):
    assert story.gone_s < GONE_S
    assert story.statuses[0] == -signal.SIGKILL


def test_a_killed_generation_process_is_replaced_and_counted(story):
    assert read_summary(story.folder)["generator_restarts"] == 1


def test_ctrl_c_and_sigterm_stop_with_a_status_of_their_own(story):
    assert story.statuses[1:3] == [128 + signal.SIGINT, 128 + signal.SIGTERM]
    assert all("the same command goes on" in said for said in story.said[1:3])
    assert all("Traceback" not in said for said in story.said[1:])


def test_the_same_command_goes_on_until_the_end(story):
    assert story.statuses[3] == 0
    assert "resumed at epoch" in story.said[3]
    assert [epoch["epoch"] for epoch in read_metrics(story.folder)] == [*range(EPOCHS)]


@pytest.mark.parametrize("fixture", ["story", "ranks"])
def test_an_epoch_cut_in_two_is_logged_as_one(fixture, request):
    story = request.getfixturevalue(fixture)
    epochs, summary = read_metrics(story.folder), read_summary(story.folder)
    for name in ("served_real", "served_fresh", "served_cached", "starved", "generated"):
        assert sum(epoch[name] for epoch in epochs) == summary[name]
    served = ("served_real", "served_fresh", "served_cached", "starved")
    assert [sum(epoch[name] for name in served) for epoch in epochs] == [IMAGES_AN_EPOCH] * EPOCHS


def test_no_launch_leaves_a_process(story):
    assert story.left == [[]] * 4


def test_an_interrupted_run_that_waits_ends_with_the_weights_of_an_uninterrupted_one(story, config):
    # The other one shared its cache with a second run at the time, which is no matter either.
    files = [run_folder(config, name) / "model.safetensors" for name in ("seed0", "unlucky")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_that_waits_for_its_first_image_stops_at_once(pair, config):
    cache = config.parent / "cache_for_nobody"
    story = Story(run_folder(config, "hurried"), cache)
    launch = start(config, "hurried", f"cache.path={cache}")
    wait_for(lambda: generators_of(story.folder), launch)
    stop(story, launch, signal.SIGTERM)
    assert story.statuses == [128 + signal.SIGTERM]
    assert story.left == [[]]
    assert (story.folder / "checkpoints" / "latest").read_text() == "step_00000000"


@pytest.mark.parametrize(
    ("number", "generate"),
    [(signal.SIGINT, "cpu"), (signal.SIGTERM, "cpu"), (signal.SIGTERM, "[cpu, cpu]")],
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
    stop(story, launch, number)
    assert story.statuses == [128 + number]
    assert "Traceback" not in story.said[0]
    assert {path.suffix for path in place.iterdir()} == {".lock", ".unfinished"}
    (unfinished,) = place.glob("*.unfinished")
    assert [path.name for path in unfinished.iterdir()] == ["checkpoints"]


@pytest.fixture(scope="module")
def ranks(pair, config):
    """Two ranks on a cold cache with a loader process each, interrupted once."""
    cache = config.parent / "cache_of_two"
    story = Story(run_folder(config, "two_ranks"), cache)
    overrides = [f"cache.path={cache}", "devices.train=[cpu, cpu]", "data.workers=1"]
    launch = start(config, "two_ranks", *overrides)
    wait_for(story.has_epochs(1), launch)
    stop(story, launch, signal.SIGTERM)
    story.end(start(config, "two_ranks", *overrides))
    return story


def test_two_ranks_stop_together_and_go_on_together(ranks):
    assert ranks.statuses == [128 + signal.SIGTERM, 0], ranks.said
    assert ranks.left == [[], []]


def test_two_ranks_share_the_images_of_one_generation_process(ranks):
    summary = read_summary(ranks.folder)
    served = [summary[f"served_{kind}"] for kind in ("real", "fresh", "cached")]
    assert sum(served) == EPOCHS * IMAGES_AN_EPOCH
    assert all(served)
    assert 0 < summary["generated"] <= count_images(ranks.cache) == PLANNED


def test_each_launch_of_two_ranks_is_noted_once(ranks):
    text = (ranks.folder / "environment.json").read_text()
    assert text.count('"started"') == 2


@pytest.fixture(scope="module")
def hopeless(pair, config, embedded_root):
    """A run whose generation process meets a source image that ends in the middle."""
    images = config.parent / "images"
    digits = embedded_root / "digits"
    for name in ("0", "1"):
        for number, path in enumerate(sorted((digits / "train" / name).iterdir())[:12]):
            (images / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, images / name / f"{number}.png")
    story = Story(run_folder(config, "hopeless"), config.parent / "cache_of_none")
    for path in images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
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
