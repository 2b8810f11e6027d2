"""Several generation processes as one."""

from threading import Barrier

import pytest

from online_aug.producer.messages import Status
from online_aug.producer.supervisor import SupervisorGroup


class Member:
    """Stands for a supervisor: it has a status, and writes down what it is asked."""

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
def test_the_state_is_that_of_the_busiest(states, together):
    assert SupervisorGroup([Member(state=state) for state in states]).status.state == together


def test_counts_speeds_and_restarts_are_summed():
    members = [
        Member(generated=5, rejected=2, rejected_by_reason={"white": 2}, images_per_s=1.5),
        Member(generated=7, rejected=1, rejected_by_reason={"black": 1}, images_per_s=2.0),
    ]
    fleet = SupervisorGroup(members)
    assert (fleet.status.generated, fleet.status.rejected, fleet.restarts) == (12, 3, 2)
    assert fleet.status.rejected_by_reason == {"white": 2, "black": 1}
    assert fleet.status.images_per_s == 3.5


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
def test_each_is_told_its_share_of_what_was_served(made, fresh, told):
    members = [Member(generated=count) for count in made]
    SupervisorGroup(members).served(fresh)
    assert [member.asked for member in members] == [[("served", count)] for count in told]


def test_shares_are_told_anew_when_one_turns_out_to_have_made_more():
    members = [Member(generated=4), Member()]
    fleet = SupervisorGroup(members)
    fleet.served(6)
    members[1].status = Status(state="paused", generated=2)
    fleet.check()
    fleet.check()
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
def test_all_are_asked(name, arguments):
    members = [Member(), Member()]
    getattr(SupervisorGroup(members), name)(*arguments)
    assert [member.asked for member in members] == [[(name, *arguments)]] * 2


def test_all_are_stopped_at_once():
    together = Barrier(3, timeout=30)

    class Slow(Member):
        def stop(self):
            together.wait()

    SupervisorGroup([Slow(), Slow(), Slow()]).stop()
    assert not together.broken
