"""The guide's batch script on two nodes: SLURM's commands start two launchers on this machine."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import slurm
from tiny_runs import (
    LIMIT_S,
    ROOT,
    count_images,
    environment,
    processes_of,
    read_metrics,
    read_summary,
    run_folder,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

SCRIPT = ROOT / "docs" / "guide" / "two_nodes.sbatch"
EPOCHS, STEPS, BATCH_SIZE = 2, 15, 8


class Job:
    """The batch script as SLURM starts it."""

    def __init__(self, told, config, *overrides):
        words = ["run.name=slurm", "mixing.starvation=substitute", f"optim.batch_size={BATCH_SIZE}"]
        local = {"RANKS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), str(config), *words, "devices.train=cpu", *overrides],
            env=environment() | {"PYTHONPATH": str(ROOT)} | told | local,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.out = self.err = ""

    def wait(self):
        self.out, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode


@dataclass
class Story:
    folder: Path
    caches: list
    stopped_at: int
    """Epochs there were when the job was stopped."""
    statuses: list
    said: list


@pytest.fixture(scope="module")
def story(config, tmp_path_factory):
    """A job that is told two minutes before its end, and the same line submitted again."""
    place = tmp_path_factory.mktemp("job")
    told = slurm.install(place)
    folder = run_folder(config, "slurm")
    caches = [place / "disks" / f"node{node}" / "me-cache" for node in (0, 1)]
    job = Job(told, config, "run.epochs=100000", "optim.schedule=constant")
    try:
        wait_for(lambda: all(map(count_images, caches)) and read_metrics(folder), job)
    finally:
        for task in processes_of("torchrun", config):
            os.kill(task, signal.SIGTERM)
    status, said = job.wait(), job.out
    stopped_at = len(read_metrics(folder))
    job = Job(told, config, f"run.epochs={stopped_at + EPOCHS}", "optim.schedule=constant")
    return Story(folder, caches, stopped_at, [status, job.wait()], [said, job.out])


def test_a_job_that_is_told_to_end_goes_on_when_it_is_submitted_again(story):
    assert story.statuses[0] != 0
    assert story.statuses[1] == 0, story.said[1]
    assert "resumed at epoch" in story.said[1]
    steps = [epoch["step"] for epoch in read_metrics(story.folder)]
    assert steps == [STEPS * (number + 1) for number in range(story.stopped_at + EPOCHS)]


def test_each_node_trains_its_rank_and_makes_images_on_its_own_disk(story):
    last = f"epoch{story.stopped_at + EPOCHS - 1:04d}-rank*.npy"
    assert len(list((story.folder / "ledger").glob(last))) == 2
    assert all(map(count_images, story.caches))
    assert read_summary(story.folder)["epochs"] == story.stopped_at + EPOCHS
