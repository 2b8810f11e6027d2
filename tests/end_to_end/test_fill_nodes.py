"""One plan filled by two launchers, with a cache each or one for both; one of them is killed."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass

import pytest
import slurm
from tiny_runs import (
    LIMIT_S,
    PLANNED,
    ROOT,
    Launch,
    count_images,
    environment,
    processes_of,
    wait_for,
)

from cache import Store

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "docs" / "guide" / "fill_two_nodes.sbatch"
PART = ("schedule.helps=false", "mixing.starvation=substitute")
TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}


def fill(config, cache, *overrides, node=None):
    """Fill a cache alone, or as the process that a launcher has started on a node."""
    told = {} if node is None else TORCHRUN | {"RANK": str(node), "WORLD_SIZE": "2"}
    words = [f"cache.path={cache}", f"finetune.path={config.parent / 'nodes_finetuned'}"]
    return Launch("-m", "online_aug", "fill", config, *words, *overrides, told=told)


def records_of(cache):
    with Store(cache, readonly=True) as store:
        return {key: store.get(key).image.tobytes() for _, key in store.tail()}


def left_to_make(launch):
    """How many images the progress bar of a call was about."""
    return int(launch.out.rpartition(" in ")[0].rpartition("/")[2])


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The plan as one launcher makes it."""
    cache = tmp_path_factory.mktemp("alone") / "cache"
    fill(config, cache).succeed()
    return records_of(cache)


@pytest.mark.nightly
def test_caches_of_two_launchers_joined_are_that_of_one_and_nothing_was_made_twice(
    alone, config, tmp_path
):
    parts = [tmp_path / f"part{node}" for node in (0, 1)]
    launches = [fill(config, part, *PART, node=node) for node, part in enumerate(parts)]
    for launch in launches:
        launch.succeed()
    made = [records_of(part) for part in parts]
    assert all(made)
    assert len(made[0]) + len(made[1]) == len(alone) == PLANNED
    Launch("-m", "cache", "merge", *parts, "--into", tmp_path / "whole").succeed()
    assert records_of(tmp_path / "whole") == made[0] | made[1] == alone


@pytest.mark.nightly
def test_with_one_cache_the_other_launcher_ends_the_plan_of_one_that_is_killed(
    alone, config, tmp_path
):
    cache = tmp_path / "cache"
    launches = [fill(config, cache, node=node) for node in (0, 1)]
    wait_for(lambda: count_images(cache), launches[0])
    launches[1].process.kill()
    launches[1].wait()
    launches[0].succeed()
    assert records_of(cache) == alone


@dataclass
class Job:
    statuses: list
    said: str
    parts: list
    """The images of each node's cache as the job copied it."""
    whole: dict
    folder: object


@pytest.fixture(scope="module")
def job(config, tmp_path_factory):
    """The guide's batch script, in which the second node's task is killed half-way."""
    place = tmp_path_factory.mktemp("job")
    told = slurm.install(place)
    local, shared = place / "local", place / "shared"
    words = [f"finetune.path={config.parent / 'nodes_finetuned'}"]
    process = subprocess.Popen(
        ["bash", str(SCRIPT), str(config), *words],
        env=environment()
        | {"PYTHONPATH": str(ROOT), "LOCAL": str(local)}
        | told
        | {"SHARED": str(shared)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: count_images(local / "part1") or process.poll() is not None)
    for task in processes_of("fill", local / "part1"):
        os.kill(task, signal.SIGKILL)
    said, _ = process.communicate(timeout=LIMIT_S)
    parts = [records_of(shared / f"part{node}") for node in (0, 1)]
    return Job([process.returncode], said, parts, records_of(local / "whole"), shared)


@pytest.mark.nightly
def test_the_batch_script_completes_what_a_killed_task_has_left(job, alone):
    assert job.statuses == [0], job.said
    assert "a task ended early" in job.said
    made = sum(map(len, job.parts))
    assert all(job.parts)
    assert not job.parts[0].keys() & job.parts[1].keys()
    assert made < PLANNED
    assert f"{PLANNED - made}/{PLANNED - made} in" in job.said
    assert job.whole == alone


@pytest.mark.nightly
def test_the_batch_script_exports_every_image_once(job):
    lines = (job.folder / "images" / "metadata.jsonl").read_text().splitlines()
    assert len({json.loads(line)["file_name"] for line in lines}) == len(lines) == PLANNED
