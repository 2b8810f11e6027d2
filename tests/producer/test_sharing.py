"""What a shared device leaves to others, by a clock that work and rest move."""

import pytest

from online_aug.producer.work import DutyCycle, share_device


class Worker:
    """Stands for `ImageGenerator`: a step is one second, and half a second more on the device."""

    room = 5

    def __init__(self):
        self.now_s = self.rested_s = 0.0
        self.asked = []

    def step(self):
        self.now_s += 1.0
        return ["an image"]

    def finish(self):
        self.now_s += 0.5

    def sleep(self, seconds):
        self.now_s += seconds
        self.rested_s += seconds

    def submit(self, *arguments):
        self.asked.append(arguments)

    def drop(self):
        self.asked.append("drop")


def shared(share):
    worker = Worker()
    cycle = DutyCycle(
        worker, share, finish=worker.finish, clock=lambda: worker.now_s, sleep=worker.sleep
    )
    return worker, cycle


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_it_rests_for_the_share_of_the_time(share):
    worker, cycle = shared(share)
    for _ in range(10):
        assert cycle.step() == ["an image"]
    assert worker.rested_s / worker.now_s == pytest.approx(share)


def test_what_the_device_still_has_to_do_counts_as_work():
    worker, cycle = shared(0.5)
    cycle.step()
    assert worker.rested_s == 1.5


def test_everything_else_goes_straight_to_the_generator():
    worker, cycle = shared(0.5)
    cycle.submit(["a request"], print)
    cycle.drop()
    assert cycle.room == 5
    assert worker.asked == [(["a request"], print), "drop"]
    assert worker.now_s == 0


def test_a_device_of_its_own_never_rests():
    worker = Worker()
    assert share_device(worker, "cpu", 0.0) is worker
    assert isinstance(share_device(worker, "cuda:0", 0.5), DutyCycle)
