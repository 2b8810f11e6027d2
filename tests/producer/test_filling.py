"""The speed of an engine, by a clock that it moves."""

import pytest
import torch
from request_samples import make_plan, make_sources

from online_aug.errors import UserError
from online_aug.generation.gate import Finished
from online_aug.planning import ListedRequests
from online_aug.producer.filling import measure_speed
from online_aug.producer.work import Work

PLAN = make_plan(make_sources(6), 2)
SLOTS = 4


class Clockwork:
    """Stands for `ImageGenerator`: makes an image a second after ten seconds of warming up."""

    def __init__(self):
        self.now_s, self.made, self.in_flight = 0.0, [], []

    @property
    def room(self):
        return max(0, SLOTS + 8 - len(self.in_flight))

    def submit(self, requests, prepare):
        assert len(prepare(requests)) == len(requests)
        self.in_flight += requests

    def step(self):
        assert len(self.in_flight) >= SLOTS
        self.now_s += 1
        if self.now_s <= 10:
            return []
        self.made.append(self.in_flight.pop(0))
        return [Finished(self.made[-1], torch.zeros(3, 8, 8), None)]

    def drop(self):
        self.in_flight = []


def measure(refusal=lambda request: None, is_stopping=lambda made: False, **changes):
    generator = Clockwork()
    work = Work(
        plan=ListedRequests(PLAN),
        plan_of=None,
        prepare=lambda requests: torch.zeros(len(requests), 3, 8, 8, dtype=torch.uint8),
        refusal=refusal,
        max_ahead=None,
    )
    settings = {"seconds": 30, "clock": lambda: generator.now_s} | changes
    speed = measure_speed(work, generator, is_stopping=lambda: is_stopping(generator), **settings)
    return generator, speed


def test_the_time_before_the_first_image_does_not_count():
    _, speed = measure()
    assert (speed.images, speed.seconds, speed.images_per_s) == (30, 30, 1)


def test_a_plan_that_is_too_short_is_repeated_with_other_noise():
    generator, _ = measure()
    assert generator.made[: len(PLAN)] == PLAN
    again = generator.made[len(PLAN) : 2 * len(PLAN)]
    assert [r.source_digest for r in again] == [r.source_digest for r in PLAN]
    assert len(set(generator.made)) == len(generator.made)


def test_nothing_is_left_in_flight():
    assert measure()[0].in_flight == []


def test_requests_that_the_method_refuses_are_skipped():
    generator, _ = measure(refusal=lambda r: "no background" if r.variant else None)
    assert {request.variant for request in generator.made} == {0}


def test_a_plan_without_any_accepted_request_is_an_error_line():
    with pytest.raises(UserError, match="^plan must hold .*, got none: no background$"):
        measure(refusal=lambda request: "no background")


def test_a_stop_ends_the_measurement_with_what_was_made():
    _, speed = measure(is_stopping=lambda generator: len(generator.made) == 6)
    assert (speed.images, speed.seconds) == (5, 5)


def test_a_stop_before_the_first_image_measures_nothing():
    _, speed = measure(is_stopping=lambda generator: generator.now_s == 3)
    assert (speed.images, speed.images_per_s) == (0, 0)
