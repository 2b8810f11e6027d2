import os
import signal
import sys

import pytest

from online_aug.processes import STOPPING, Interrupt, outlive_terminal


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_first_signal_is_noted_with_its_exit_status(number, status):
    with Interrupt() as interrupt:
        assert interrupt.exit_status == 0
        os.kill(os.getpid(), number)
        assert interrupt.received == number
    assert interrupt.exit_status == status


def test_a_second_ctrl_c_acts_at_once():
    with Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_lets_the_checkpoint_finish():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.received == signal.SIGTERM


def test_signals_are_handled_as_before_afterwards():
    before = [signal.getsignal(number) for number in STOPPING]
    with Interrupt():
        pass
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_a_run_under_nohup_outlives_its_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert interrupt.received is None


@pytest.mark.parametrize(
    ("number", "outcome"), [(signal.SIGTERM, -15), (signal.SIGINT, 7), (signal.SIGHUP, 7)]
)
def test_a_forked_worker_ends_on_sigterm_and_leaves_the_terminal_to_its_parent(number, outcome):
    with Interrupt() as interrupt:
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), number)
            os._exit(7)
        _, status = os.waitpid(worker, 0)
    assert os.waitstatus_to_exitcode(status) == outcome
    assert interrupt.received is None


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def test_output_that_nobody_reads_any_more_hangs_up_and_is_dropped(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, Interrupt() as interrupt:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.__stdout__", stream)
        outlive_terminal()
        say("heard")
        assert os.read(reading, 99) == b"heard\n"
        assert interrupt.received is None
        os.close(reading)
        say("unheard")
        say("unheard too")
        assert interrupt.received == signal.SIGHUP
