"""Trainer and generation process as two real processes, without a model; groups of stand-ins."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Barrier

import psutil
import pytest

from online_aug.errors import UserError
from online_aug.producer import supervisor
from online_aug.producer.messages import Status
from online_aug.producer.supervisor import Supervisor, SupervisorGroup

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """Let children import the package, and restart them without a wait."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.01)
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 2)


@pytest.fixture
def supervise(tmp_path):
    """Return a function that starts a supervised child; the child is ended with the test."""
    made = []

    def make(behaviour, *, starts=True, **environment):
        command = [str(SCRIPTS / "child.py"), behaviour, str(tmp_path)]
        made.append(Supervisor(command, tmp_path / "generator.log", environment))
        made[-1].start() if starts else made[-1].warm_up()
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
    """Return what the n-th child has written about itself, as soon as it has."""
    path = folder / f"child{number}.json"
    return json.loads(eventually(lambda: path.exists() and path.read_text()))


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check_until(process, condition):
    """Check as the loader does with every batch until a condition is true, and return it."""
    return eventually(lambda: process.check() or condition())


def test_messages_of_the_child_are_read_and_its_prints_go_to_the_log(supervise, tmp_path):
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


def test_the_child_gets_no_variables_of_the_launcher(supervise, tmp_path, monkeypatch):
    for name in supervisor.RANK_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")
    supervise("serve", CUDA_VISIBLE_DEVICES="3")
    environment = child(tmp_path)["environment"]
    assert not set(environment) & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    assert not set(environment) & set(supervisor.RANK_VARIABLES)
    assert (environment["KEPT"], environment["CUDA_VISIBLE_DEVICES"]) == ("yes", "3")


def test_stopping_leaves_nothing_behind(supervise, tmp_path):
    process = supervise("serve")
    pid = child(tmp_path)["pid"]
    process.stop()
    assert not psutil.pid_exists(pid)
    assert process.status.state == "finished"
    process.stop()


def test_a_child_that_is_warmed_up_waits_until_it_may_begin(supervise, tmp_path):
    process = supervise("begin", starts=False)
    pid = child(tmp_path)["pid"]
    eventually(lambda: process.status.state == "waiting")
    assert not (tmp_path / f"begun-{pid}").exists()
    process.start()
    eventually((tmp_path / f"begun-{pid}").exists)


def test_a_child_that_died_while_it_waited_is_started_again_and_begins(supervise, tmp_path):
    process = supervise("begin", starts=False)
    os.kill(child(tmp_path)["pid"], signal.SIGKILL)
    process.start()
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    eventually((tmp_path / f"begun-{child(tmp_path, 1)['pid']}").exists)


def test_a_child_that_has_not_begun_is_ended_without_being_asked(supervise, tmp_path):
    process = supervise("begin", starts=False)
    pid = child(tmp_path)["pid"]
    eventually(lambda: process.status.state == "waiting")
    process.stop()
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / f"stopped-{pid}").exists()


def test_a_child_that_does_not_listen_is_ended_too(supervise, tmp_path, monkeypatch):
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
    process = supervise("serve")
    hung = child(tmp_path)["pid"]
    eventually(lambda: process.status.state == "generating")
    monkeypatch.setattr(supervisor, "SILENT_S", 1.0)
    monkeypatch.setattr(supervisor, "MAKE_SURE_S", 0.1)
    os.kill(hung, signal.SIGSTOP)
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    assert is_gone(hung)
    assert process.restarts == 1
    assert "no word for 1 s" in caplog.text


def test_a_child_that_gives_signs_of_life_is_left_alone(supervise, monkeypatch):
    process = supervise("serve")
    eventually(lambda: process.status.state == "generating")
    monkeypatch.setattr(supervisor, "SILENT_S", 1.0)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        process.check()
        time.sleep(0.05)
    assert process.restarts == 0


def test_after_a_sleep_of_the_whole_machine_the_child_is_left_alone(supervise, monkeypatch):
    process = supervise("serve")
    eventually(lambda: process.status.state == "generating")
    slept = time.monotonic() + 2 * supervisor.SILENT_S
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: slept)
    process.check()
    assert process.restarts == 0


def test_restarts_come_at_growing_distances(supervise, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.1)
    process = supervise("crash")
    check_until(process, lambda: process.restarts == 1)
    died = time.monotonic()
    check_until(process, lambda: (tmp_path / "child1.json").exists())
    assert time.monotonic() - died >= 0.1
    check_until(process, lambda: process.restarts == 2)
    died = time.monotonic()
    check_until(process, lambda: (tmp_path / "child2.json").exists())
    assert time.monotonic() - died >= 0.2


def test_too_many_restarts_in_vain_end_in_an_error_line(supervise, tmp_path):
    process = supervise("fail in vain")
    with pytest.raises(UserError) as caught:
        check_until(process, lambda: False)
    log = tmp_path / "generator.log"
    assert str(caught.value) == (
        "generation process died 3 times and made nothing, last: OutOfMemoryError: no room; "
        f"see {log}"
    )
    assert process.restarts == 2


def test_a_child_that_made_something_is_restarted_any_number_of_times_and_all_images_count(
    supervise,
):
    process = supervise("fail")
    check_until(process, lambda: process.restarts > supervisor.MAX_RESTARTS + 1)
    assert process.status.generated >= 5 * process.restarts


def test_a_crash_without_a_message_is_reported_by_its_exit_status(supervise):
    process = supervise("crash")
    with pytest.raises(UserError, match="last: exit status 3; see"):
        check_until(process, lambda: False)


def test_a_failure_that_no_restart_helps_is_an_error_at_once(supervise):
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


def test_the_last_messages_are_read_before_the_end_is_judged(supervise, monkeypatch):
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


def test_maps_published_before_the_start_are_told_at_the_start(supervise, tmp_path):
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


class Member:
    """Stands for a supervisor: it has a status and records what it is asked."""

    restarts = 1

    def __init__(self, **status):
        self.status = Status(**{"state": "generating"} | status)
        self.asked = []

    def __getattr__(self, name):
        return lambda *arguments: self.asked.append((name, *arguments))


@pytest.mark.parametrize(
    ("states", "together"),
    [
        (["paused", "generating"], "generating"),
        (["finished", "loading"], "loading"),
        (["finished", "waiting", "paused"], "paused"),
        (["finished", "full"], "full"),
        (["finished", "finished"], "finished"),
        (["paused"], "paused"),
    ],
)
def test_the_state_of_a_group_is_that_of_the_busiest(states, together):
    assert SupervisorGroup([Member(state=state) for state in states]).status.state == together


def test_counts_speeds_and_restarts_of_a_group_are_summed():
    members = [
        Member(generated=5, rejected=2, rejected_by_reason={"white": 2}, images_per_s=1.5),
        Member(generated=7, rejected=1, rejected_by_reason={"black": 1}, images_per_s=2.0),
    ]
    group = SupervisorGroup(members)
    assert (group.status.generated, group.status.rejected, group.restarts) == (12, 3, 2)
    assert group.status.rejected_by_reason == {"white": 2, "black": 1}
    assert group.status.images_per_s == 3.5


@pytest.mark.parametrize(
    ("made", "fresh", "told"),
    [
        ([30, 10], 20, [15, 5]),
        ([0, 0], 0, [0, 0]),
        ([8, 0], 3, [3, 0]),
        ([9], 7, [7]),
        ([0], 3, [3]),
    ],
)
def test_each_member_is_told_its_share_of_the_served_images(made, fresh, told):
    members = [Member(generated=count) for count in made]
    SupervisorGroup(members).served(fresh)
    assert [member.asked for member in members] == [[("served", count)] for count in told]


def test_shares_are_told_again_when_a_member_has_made_more():
    members = [Member(generated=4), Member()]
    group = SupervisorGroup(members)
    group.served(6)
    members[1].status = Status(state="paused", generated=2)
    group.check()
    group.check()
    assert members[0].asked == [("served", 6), ("check",), ("served", 4), ("check",)]
    assert members[1].asked == [("served", 0), ("check",), ("served", 2), ("check",)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("start", ()),
        ("check", ()),
        ("publish", ("v1",)),
        ("publish_losses", ([0.5, None],)),
        ("stop", ()),
    ],
)
def test_a_group_passes_everything_on_to_all_members(name, arguments):
    members = [Member(), Member()]
    getattr(SupervisorGroup(members), name)(*arguments)
    assert [member.asked for member in members] == [[(name, *arguments)]] * 2


def test_all_members_are_stopped_at_once():
    together = Barrier(3, timeout=30)

    class Slow(Member):
        def stop(self):
            together.wait()

    SupervisorGroup([Slow(), Slow(), Slow()]).stop()
    assert not together.broken
