"""The launches of a comparison: their status, their log, and what a signal does to them."""

import os
import signal
import sys
import threading

import pytest
from comparison_samples import make_run
from launches import is_alive, wait_for

from online_aug.comparison.launches import launching

PATIENT = """#!{python}
import pathlib, signal, sys, time
place = pathlib.Path({folder!r})
def stop(number, frame):
    (place / "told").write_text(str(number))
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
(place / "ready").write_text(str(__import__("os").getpid()))
time.sleep(60)
"""
"""A training, as far as signals go: it stops with the status of the first."""


@pytest.fixture
def patient(tmp_path, monkeypatch):
    """Children that wait for a signal."""
    program = tmp_path / "patient"
    program.write_text(PATIENT.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def test_what_a_child_says_is_shown_and_logged(tmp_path, capfd):
    run = make_run(tmp_path, "vanilla", 0, ["optim.lrr=1"])
    with launching() as launches:
        assert launches.run("train", run, is_shown=True) == 2
    said = "error: optim.lrr is no known key"
    assert run.log.read_text().startswith(said)
    assert capfd.readouterr().err.startswith(said)


def test_nothing_is_shown_if_nobody_watches(tmp_path, capfd):
    run = make_run(tmp_path, "vanilla", 0, ["optim.lrr=1"])
    with launching() as launches:
        assert launches.run("train", run, is_shown=False) == 2
    assert "error: optim.lrr" in run.log.read_text()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_nothing_starts_after_it(patient, number):
    run = make_run(patient, "vanilla", 0)
    threading.Thread(target=_send_when_ready, args=(patient, number)).start()
    with launching() as launches:
        assert launches.run("train", run, is_shown=True) == 128 + number
        assert launches.exit_status == 128 + number
        (patient / "ready").unlink()
        assert launches.run("train", run, is_shown=True) == 128 + number
    assert (patient / "told").read_text() == str(int(number))
    assert not (patient / "ready").exists()


def _send_when_ready(folder, number):
    wait_for(lambda: (folder / "ready").exists() and (folder / "ready").read_text())
    os.kill(os.getpid(), number)


def test_a_child_ends_with_its_parent(patient):
    parent = os.fork()
    if not parent:
        with launching() as launches:
            launches.run("train", make_run(patient, "vanilla", 0), is_shown=False)
        os._exit(0)
    wait_for(lambda: (patient / "ready").exists() and (patient / "ready").read_text())
    child = int((patient / "ready").read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_for(lambda: not is_alive(child))
