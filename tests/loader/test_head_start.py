"""The wait before the first batch: how long, for what, and how it ends."""

from types import SimpleNamespace

import pytest

from online_aug.errors import UserError
from online_aug.loader import head_start
from online_aug.loader.head_start import HeadStart
from online_aug.loader.sampler import StopWaiting


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch):
    monkeypatch.setattr(head_start, "_POLL_S", 0.0)


class Pool:
    """Gets another image of the plan at each look."""

    def __init__(self, inserts=0, last=10**9):
        self.inserts, self.last, self.looks = inserts, last, 0

    def refresh(self):
        self.looks += 1
        self.inserts = min(self.inserts + 1, self.last)


def generator(state="generating", check=lambda: None):
    return SimpleNamespace(status=SimpleNamespace(state=state), check=check)


@pytest.mark.parametrize(("images", "planned", "there"), [(5, 100, 5), (500, 7, 7)])
def test_it_waits_for_the_number_or_for_a_smaller_plan(images, planned, there):
    pool = Pool()
    HeadStart(images, pool, generator())(planned)
    assert pool.inserts == there


@pytest.mark.parametrize(("images", "planned"), [(0, 100), (5, 0)])
def test_without_a_number_or_a_plan_nothing_is_looked_at(images, planned):
    pool = Pool()
    HeadStart(images, pool, generator())(planned)
    assert pool.looks == 0


def test_it_waits_once():
    pool = Pool()
    wait = HeadStart(3, pool, generator())
    wait(100)
    wait(100)
    assert pool.looks == 3


def test_images_that_are_there_already_count():
    pool = Pool(inserts=50)
    HeadStart(20, pool, generator())(100)
    assert pool.looks == 1


@pytest.mark.parametrize("state", ["finished", "full"])
def test_it_ends_if_generation_has_ended(state):
    pool = Pool(last=2)
    HeadStart(5, pool, generator(state))(100)
    assert pool.inserts < 5


def test_it_stops_on_all_ranks_if_one_is_to_stop():
    pool = Pool(inserts=9)
    stopping = head_start._STOPPING
    with pytest.raises(StopWaiting):
        HeadStart(5, pool, generator(), agree=lambda value: max(value, stopping))(100)


def test_a_rank_without_a_generator_waits_for_the_others():
    answers = [head_start._WAITING, head_start._WAITING, head_start._READY]
    HeadStart(5, Pool(last=0), None, agree=lambda value: answers.pop(0))(100)
    assert answers == []


def test_a_generation_process_that_cannot_go_on_ends_it():
    def fail():
        raise UserError("generation process: no room")

    with pytest.raises(UserError, match="no room"):
        HeadStart(5, Pool(), generator(check=fail))(100)
