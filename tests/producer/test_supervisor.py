"""Trainer and generation process as two real processes, without a model."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from online_aug.errors import UserError
from online_aug.producer import supervisor
from online_aug.producer.supervisor import Supervisor

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """The package is found from its folder too; restarts do not keep a test waiting."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.01)
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 2)


@pytest.fixture
def supervise(tmp_path):
    """Make a supervisor of a child with a behaviour; its process is ended with the test."""
    made = []

    def make(behaviour, **environment):
        command = [str(SCRIPTS / "child.py"), behaviour, str(tmp_path)]
        made.append(Supervisor(command, tmp_path / "generator.log", environment))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


def eventually(condition, patience_s=PATIENCE_S):
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def child(folder, number=0):
    """What the n-th child wrote about itself, as soon as it did."""
    path = folder / f"child{number}.json"
    return json.loads(eventually(lambda: path.exists() and path.read_text()))


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check_until(process, condition):
    """Check as the loader does with every batch, until something is true."""
    return eventually(lambda: process.check() or condition())


def test_what_the_child_tells_is_known_and_what_it_prints_goes_to_the_log(supervise, tmp_path):
    process = supervise("serve")
    eventually(lambda: process.status.state == "generating")
    assert process.status.generated == 1
    process.stop()
    assert "a library says something" in (tmp_path / "generator.log").read_text()


def test_the_child_learns_how_much_was_served(supervise):
    process = supervise("echo")
    process.served(11)
    eventually(lambda: process.status.generated == 11)
    process.served(12)
    eventually(lambda: process.status.generated == 12)


def test_the_child_knows_nothing_of_the_launcher(supervise, tmp_path, monkeypatch):
    for name in supervisor._LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")
    supervise("serve", CUDA_VISIBLE_DEVICES="3")
    environment = child(tmp_path)["environment"]
    assert not set(environment) & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    assert not set(environment) & set(supervisor._LAUNCHER_VARIABLES)
    assert (environment["KEPT"], environment["CUDA_VISIBLE_DEVICES"]) == ("yes", "3")


def test_stopping_leaves_nothing_behind(supervise, tmp_path):
    process = supervise("serve")
    pid = child(tmp_path)["pid"]
    process.stop()
    assert not psutil.pid_exists(pid)
    assert process.status.state == "finished"
    process.stop()


def test_a_child_that_does_not_listen_is_ended_all_the_same(supervise, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT_S", 0.1)
    process = supervise("deaf")
    pid = child(tmp_path)["pid"]
    process.stop()
    assert not psutil.pid_exists(pid)


def test_ctrl_c_does_not_reach_the_child(supervise, tmp_path):
    supervise("serve")
    assert os.getpgid(child(tmp_path)["pid"]) != os.getpgid(0)


@pytest.mark.parametrize("behaviour", ["serve", "tied to the parent"])
def test_the_child_dies_within_five_seconds_when_the_trainer_is_killed(tmp_path, behaviour):
    command = [sys.executable, str(SCRIPTS / "parent.py"), str(SCRIPTS / "child.py")]
    parent = subprocess.Popen([*command, behaviour, str(tmp_path)])
    workers = []
    try:
        pid = child(tmp_path)["pid"]
        workers = [p for p in psutil.Process(parent.pid).children() if p.pid != pid]
        parent.kill()
        parent.wait()
        if behaviour == "serve":  # the loader's workers end too, and with them the pipe
            for worker in workers:
                worker.kill()
        eventually(lambda: is_gone(pid), patience_s=5.0)
    finally:
        parent.kill()
        for worker in workers:
            worker.kill()


def test_a_child_that_died_is_started_again_and_counted_on(supervise, tmp_path, caplog):
    process = supervise("fail once")
    with caplog.at_level(logging.WARNING):
        check_until(process, lambda: process.status.state == "generating" and process.restarts)
        first, second = child(tmp_path, 0)["pid"], child(tmp_path, 1)["pid"]
        eventually(lambda: process.status.generated == 6)
    assert first != second
    assert (process.restarts, process.status.rejected) == (1, 1)
    assert "generation process ended (OutOfMemoryError: no room), restart 1" in caplog.text


def test_a_child_that_was_killed_is_started_again(supervise, tmp_path):
    process = supervise("serve")
    os.kill(child(tmp_path)["pid"], signal.SIGKILL)
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    assert process.restarts == 1


def test_a_child_that_hangs_is_replaced(supervise, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "SILENT_S", 4.0)
    monkeypatch.setattr(supervisor, "MAKE_SURE_S", 0.1)
    process = supervise("serve")
    hung = child(tmp_path)["pid"]
    os.kill(hung, signal.SIGSTOP)
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    assert is_gone(hung)
    assert process.restarts == 1
    assert "no word for 4 s" in caplog.text


def test_a_busy_child_is_left_alone_as_long_as_it_says_that_it_lives(supervise, monkeypatch):
    monkeypatch.setattr(supervisor, "SILENT_S", 4.0)
    monkeypatch.setattr(supervisor, "MAKE_SURE_S", 0.1)
    process = supervise("serve")
    until = time.monotonic() + 6.0
    while time.monotonic() < until:
        process.check()
        time.sleep(0.05)
    assert process.restarts == 0


def test_after_a_sleep_of_the_whole_machine_the_child_gets_time_to_be_heard(supervise, monkeypatch):
    process = supervise("serve")
    eventually(lambda: process.status.state == "generating")
    slept = time.monotonic() + 2 * supervisor.SILENT_S
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: slept)
    process.check()
    assert process.restarts == 0


def test_restarts_come_at_growing_distances(supervise, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.3)
    process = supervise("crash")
    check_until(process, lambda: process.restarts == 1)
    died = time.monotonic()
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    assert time.monotonic() - died >= 0.3
    check_until(process, lambda: process.restarts == 2)
    died = time.monotonic()
    check_until(process, lambda: (tmp_path / "child2.json").exists())
    assert time.monotonic() - died >= 0.6


def test_it_gives_up_in_words_after_too_many_restarts(supervise, tmp_path):
    process = supervise("fail in vain")
    with pytest.raises(UserError) as caught:
        check_until(process, lambda: False)
    log = tmp_path / "generator.log"
    assert str(caught.value) == (
        "generation process died 3 times and made nothing, last: OutOfMemoryError: no room; "
        f"see {log}"
    )
    assert process.restarts == 2


def test_a_child_that_made_something_is_replaced_however_often_and_all_it_made_counts(supervise):
    process = supervise("fail")
    check_until(process, lambda: process.restarts > supervisor.MAX_RESTARTS + 1)
    assert process.status.generated >= 5 * process.restarts


def test_a_crash_without_words_is_given_by_its_exit_status(supervise):
    process = supervise("crash")
    with pytest.raises(UserError, match="last: exit status 3; see"):
        check_until(process, lambda: False)


def test_a_failure_that_no_restart_mends_is_an_error_at_once(supervise):
    process = supervise("fail for good")
    with pytest.raises(UserError) as caught:
        check_until(process, lambda: False)
    expected = "generation process: generation.model must be a model, got a stone"
    assert str(caught.value) == expected
    assert process.restarts == 0


def test_a_child_that_has_made_everything_may_end(supervise):
    process = supervise("finish")
    process._process._child.wait(PATIENCE_S)
    for _ in range(3):
        process.check()
        assert process.status.state == "finished"
    assert (process.status.generated, process.restarts) == (7, 0)


def test_a_child_whose_cache_is_full_may_end_and_why_is_said_once(supervise, caplog):
    process = supervise("fill")
    process._process._child.wait(PATIENCE_S)
    for _ in range(3):
        process.check()
    assert (process.status.state, process.status.generated, process.restarts) == ("full", 3, 0)
    assert caplog.messages == ["nothing more is generated: the disk is full"]


def test_last_words_are_heard_before_the_end_is_judged(supervise, monkeypatch):
    """The listener is as slow as a busy trainer makes it; the child has long ended."""
    listen = supervisor._Process._listen

    def listen_late(self):
        self._child.wait()
        time.sleep(0.3)
        listen(self)

    monkeypatch.setattr(supervisor._Process, "_listen", listen_late)
    finished = supervise("finish")
    finished._process._child.wait(PATIENCE_S)
    finished.check()
    assert (finished.status.state, finished.restarts) == ("finished", 0)
    failed = supervise("fail for good")
    failed._process._child.wait(PATIENCE_S)
    with pytest.raises(UserError, match="got a stone"):
        failed.check()


def test_writing_to_a_child_that_is_dying_does_no_harm(supervise, tmp_path):
    process = supervise("deaf")
    os.kill(child(tmp_path)["pid"], signal.SIGKILL)
    for fresh in range(2000):
        process.served(fresh)
    process.check()
    process.served(2000)
    assert process.restarts == 1


def test_after_a_restart_the_child_hears_what_was_served_of_its_own_images(supervise):
    process = supervise("fail once")
    check_until(process, lambda: process.restarts == 1 and process.status.state == "generating")
    sent = []
    process._process.send = lambda message: sent.append(message.fresh)
    process.served(4)
    process.served(9)
    del process._process.send
    assert sent == [0, 4]


def test_a_child_hears_of_newer_maps_and_one_after_a_restart_too(supervise, tmp_path):
    process = supervise("note maps")
    first = child(tmp_path)["pid"]
    process.publish("v1")
    eventually(lambda: (tmp_path / f"v1-{first}").exists())
    os.kill(first, signal.SIGKILL)
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    second = child(tmp_path, 1)["pid"]
    eventually(lambda: (tmp_path / f"v1-{second}").exists())


def test_maps_that_came_before_the_start_are_told_at_the_start(supervise, tmp_path):
    process = supervise("note maps")
    process.stop()
    process.publish("v2")
    process.start()
    pid = child(tmp_path, 1)["pid"]
    eventually(lambda: (tmp_path / f"v2-{pid}").exists())


def test_a_child_hears_of_losses_and_one_after_a_restart_too(supervise, tmp_path):
    process = supervise("note losses")
    first = child(tmp_path)["pid"]
    process.publish_losses([0.5, None])
    eventually(lambda: (tmp_path / f"(0.5, None)-{first}").exists())
    os.kill(first, signal.SIGKILL)
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    second = child(tmp_path, 1)["pid"]
    eventually(lambda: (tmp_path / f"(0.5, None)-{second}").exists())
