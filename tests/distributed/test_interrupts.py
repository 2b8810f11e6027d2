import os
import signal

import pytest

from online_aug.distributed.processes import Interrupt


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(("number", "outcome"), [(signal.SIGTERM, -15), (signal.SIGINT, 7)])
def test_a_forked_worker_ends_on_sigterm_and_leaves_ctrl_c_to_its_parent(number, outcome):
    with Interrupt() as interrupt:
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), number)
            os._exit(7)
        _, status = os.waitpid(worker, 0)
    assert os.waitstatus_to_exitcode(status) == outcome
    assert interrupt.received is None
