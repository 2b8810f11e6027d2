import json
import os
import signal
import subprocess
import sys

import pytest
from classifier_samples import train_and_resume, train_and_skip
from launches import GONE_S, LIMIT_S, SCRIPTS, environment, is_alive, noted_pids, wait_for

from online_aug.distributed.launcher import needs_launcher

RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def start(script, *arguments, ranks=2, **extra):
    command = [sys.executable, SCRIPTS / "launch.py", SCRIPTS / script, str(ranks), *arguments]
    return subprocess.Popen(command, env=environment(**extra), cwd=arguments[0])


@pytest.mark.parametrize(
    ("devices", "variables", "expected"),
    [
        (["cpu", "cpu"], {}, True),
        (["cuda:0"], {}, False),
        (["cpu", "cpu"], RANK, False),
    ],
)
def test_only_several_devices_outside_a_launcher_need_it(monkeypatch, devices, variables, expected):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert needs_launcher(devices) == expected


@pytest.mark.slow
def test_two_ranks_train_as_one_does_on_the_same_global_batch(world, tmp_path):
    alone = train_and_resume(world, tmp_path / "alone")
    assert start("train_steps.py", str(tmp_path)).wait(LIMIT_S) == 0
    together = json.loads((tmp_path / "losses.json").read_text())
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(set(alone)) == len(alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_all_ranks_skip_the_step_in_which_one_has_a_bad_batch(world, tmp_path, stage):
    alone = train_and_skip(world, stage)
    assert [loss is None for loss in alone] == [False, False, True, False, False]
    assert start("skip_steps.py", str(tmp_path), str(stage)).wait(LIMIT_S) == 0
    for rank in (0, 1):
        together = json.loads((tmp_path / f"losses{rank}.json").read_text())
        assert together == [loss and pytest.approx(loss, rel=1e-3) for loss in alone]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """The folder and the status of a launch whose second rank exited with 5."""
    folder = tmp_path_factory.mktemp("failed")
    extra = {"CUDA_VISIBLE_DEVICES": "3,1", "OMP_NUM_THREADS": "1"}
    return folder, start("rank_behaviour.py", str(folder), "fail", **extra).wait(LIMIT_S)


@pytest.mark.slow
def test_the_status_of_the_rank_that_failed_comes_back(failed):
    _, status = failed
    assert status == 5


@pytest.mark.slow
def test_ranks_see_the_devices_and_threads_of_the_launching_process(failed):
    folder, _ = failed
    assert (folder / "seen0").read_text() == "0 2 0 1 cpu 3,1"
    assert (folder / "seen1").read_text() == "1 2 1 1 cpu 3,1"


@pytest.mark.slow
def test_a_killed_rank_is_reported_and_what_it_started_is_gone(tmp_path):
    assert start("rank_behaviour.py", str(tmp_path), "killed").wait(LIMIT_S) == 128 + 9
    assert not any(is_alive(pid) for pid in noted_pids(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_lets_every_rank_save_and_leaves_nothing_behind(tmp_path, number, status):
    launching = start("rank_behaviour.py", str(tmp_path), "interrupted")
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    launching.send_signal(number)
    assert launching.wait(LIMIT_S) == status
    assert sorted(p.name for p in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert len(noted_pids(tmp_path)) == 4
    assert not any(is_alive(pid) for pid in noted_pids(tmp_path))


@pytest.mark.slow
def test_ranks_that_hear_nothing_end_when_the_launching_process_is_killed(tmp_path):
    launching = start("rank_behaviour.py", str(tmp_path), "deaf")
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    ranks = [int((tmp_path / f"ready{n}").read_text()) for n in (0, 1)]
    launching.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in ranks), GONE_S)
    for pid in noted_pids(tmp_path):  # no one was left to end what the ranks had started
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
