"""A run on the machines of a hostfile, with `scripts/ssh` in the place of ssh."""

import signal
import subprocess
import sys

import pytest
from launches import LIMIT_S, ROOT, SCRIPTS, environment, is_alive, noted_pids, wait_for

from online_aug.distributed import cluster
from online_aug.errors import UserError


@pytest.fixture
def _fake_ssh(monkeypatch):
    monkeypatch.setattr(cluster, "SSH", (str(SCRIPTS / "ssh"), *cluster.SSH[1:]))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])  # a worker of pytest-xdist has none


def start(folder, behaviour):
    extra = {"PATH": f"{SCRIPTS}:{environment()['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, SCRIPTS / "on_nodes.py", str(folder), behaviour]
    return subprocess.Popen(command, env=environment(**extra))


@pytest.mark.usefixtures("_fake_ssh")
def test_the_other_machines_say_how_they_see_this_one():
    assert cluster.reach({"localhost": 2, "node-b": 2, "node-c": 1}) == "127.0.0.1"


@pytest.mark.usefixtures("_fake_ssh")
def test_a_machine_that_does_not_answer_is_named():
    with pytest.raises(UserError, match="without a password, got gone: .*No route to host$"):
        cluster.reach({"localhost": 2, "node-b": 2, "gone": 2})


@pytest.mark.usefixtures("_fake_ssh")
def test_a_machine_without_this_program_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/no/such/train.py"])
    with pytest.raises(UserError, match=r"with .*, /no/such/train.py and .*, node-b has not"):
        cluster.reach({"localhost": 2, "node-b": 2})


def test_a_run_is_started_on_its_first_machine():
    with pytest.raises(UserError, match=r"must name this machine \(.*\) first, got 192\.0\.2\.77"):
        cluster.reach({"192.0.2.77": 2, "localhost": 2})


def test_one_machine_needs_no_ssh():
    assert cluster.reach({"localhost": 4}) == "127.0.0.1"


@pytest.mark.slow
def test_the_first_rank_to_fail_on_any_machine_ends_all_with_its_status(tmp_path):
    assert start(tmp_path, "fail").wait(LIMIT_S) == 5
    assert not any(is_alive(pid) for pid in noted_pids(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_ranks_of_all_machines_save(tmp_path, number, status):
    starting = start(tmp_path, "interrupted")
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    starting.send_signal(number)
    assert starting.wait(LIMIT_S) == status
    assert sorted(p.name for p in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert not any(is_alive(pid) for pid in noted_pids(tmp_path))


@pytest.mark.slow
def test_all_machines_end_when_the_process_that_started_them_is_killed(tmp_path):
    starting = start(tmp_path, "interrupted")
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    starting.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in noted_pids(tmp_path)))
