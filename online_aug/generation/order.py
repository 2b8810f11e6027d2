"""In which order a process takes the requests of a plan: its own part first, then by weight."""

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from online_aug.config_schedule import ScheduleConfig
from online_aug.records import GenerationRequest

_STRIPE_BYTES = 8
LEAST_SHARE = 0.1
"""Least weight by loss, of the mean: a class that is learnt still gets images."""


Weights: TypeAlias = Sequence[float] | Mapping[str, float]
"""Above 0: of the target classes by label, or of some source images by digest; others weigh 1."""


@dataclass(frozen=True, kw_only=True)
class Stripe:
    """One of several equal parts of any plan, told by the keys alone."""

    number: int = 0
    """From 0."""
    count: int = 1

    @classmethod
    def of(cls, schedule: ScheduleConfig) -> "Stripe":
        """The part of this machine."""
        return cls(number=schedule.stripe, count=schedule.stripes)

    def holds(self, request: GenerationRequest) -> bool:
        """Whether a request is in this part."""
        return int.from_bytes(request.key[:_STRIPE_BYTES]) % self.count == self.number

    def split(self, number: int, count: int) -> "Stripe":
        """Part `number` of `count` parts of this one."""
        return Stripe(number=self.number + self.count * number, count=self.count * count)


def part_of(plan: Iterable[GenerationRequest], schedule: ScheduleConfig) -> list[GenerationRequest]:
    """What this machine has to make of a plan: all of it, or its own part where it helps nobody."""
    own = Stripe.of(schedule)
    return [request for request in plan if schedule.helps or own.holds(request)]


class Order:
    """Requests that wait, in the order in which they are to be taken.

    The own part comes first, then the rest, which others may be at. Without weights each part is in
    the order of the plan. With weights, each class of target, or each source image, gets turns in
    proportion to its own as long as it has requests (stride scheduling); those of one class, or of
    one image, stay in the plan's order.
    """

    def __init__(
        self,
        plan: Iterable[GenerationRequest],
        stripe: Stripe | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Take a plan.

        Args:
            plan: In its own order.
            stripe: Which requests come first; None makes no difference between them.
            weights: None keeps the order of the plan.
        """
        self._stripe = stripe or Stripe()
        self._own, self._rest = _Lanes(weights), _Lanes(weights)
        self.extend(plan)

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._own) + len(self._rest)

    def take(self, count: int) -> list[GenerationRequest]:
        """The next requests, fewer at the end."""
        own = self._own.take(count)
        return own + self._rest.take(count - len(own))

    def extend(self, requests: Iterable[GenerationRequest]) -> None:
        """Let more wait, behind those of their class or image."""
        for request in requests:
            self._part(request).append(request)

    def put_back(self, requests: Sequence[GenerationRequest]) -> None:
        """Let some that were taken wait again, before those of their class or image."""
        for request in reversed(requests):
            self._part(request).append(request, is_first=True)

    def reweigh(self, weights: Weights) -> None:
        """Go on in proportion to other weights; only where there have been some.

        Raises:
            ValueError: If there have been none: the order is the plan's.
        """
        self._own.reweigh(weights)
        self._rest.reweigh(weights)

    def _part(self, request: GenerationRequest) -> "_Lanes":
        return self._own if self._stripe.holds(request) else self._rest


class _Lanes:
    """A queue for each class or image, and whose turn it is: the one whose next is due first."""

    def __init__(self, weights: Weights | None) -> None:
        self._weights = weights
        self._lanes: dict[Hashable, deque[GenerationRequest]] = {}
        self._numbers: dict[Hashable, int] = {}
        self._due: list[tuple[float, int, Hashable]] = []
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, request: GenerationRequest, *, is_first: bool = False) -> None:
        name, _ = _lane_of(request, self._weights)
        lane = self._lanes.setdefault(name, deque())
        (lane.appendleft if is_first else lane.append)(request)
        if len(lane) == 1:
            self._plan_turn(name)
        self._count += 1

    def take(self, count: int) -> list[GenerationRequest]:
        taken: list[GenerationRequest] = []
        while self._due and len(taken) < count:
            self._now, _, name = heapq.heappop(self._due)
            taken.append(self._lanes[name].popleft())
            if self._lanes[name]:
                self._plan_turn(name)
        self._count -= len(taken)
        return taken

    def reweigh(self, weights: Weights) -> None:
        if self._weights is None:
            raise ValueError("weights must replace others, got some for the order of the plan")
        self._weights, self._now, self._due = weights, 0.0, []
        for name, lane in self._lanes.items():
            if lane:
                self._plan_turn(name)

    def _plan_turn(self, name: Hashable) -> None:
        _, weight = _lane_of(self._lanes[name][0], self._weights)
        number = self._numbers.setdefault(name, len(self._numbers))  # of equals the first to come
        heapq.heappush(self._due, (self._now + 1 / weight, number, name))


def _lane_of(request: GenerationRequest, weights: Weights | None) -> tuple[Hashable, float]:
    """Whose turns a request takes, and their weight."""
    if weights is None:
        return None, 1.0
    if isinstance(weights, Mapping):
        return request.source_digest, weights.get(request.source_digest, 1.0)
    return request.target_label, weights[request.target_label]


def weights_by_loss(losses: Sequence[float | None]) -> list[float]:
    """Weights of classes in proportion to the classifier's loss on them, 1 at the mean.

    Args:
        losses: Mean loss of each class, at least 0; None where none was seen yet, which then counts
            as the mean of the others.

    Example:
        >>> weights_by_loss([2.0, None, 0.0])
        [2.0, 1.0, 0.1]
    """
    known = [loss for loss in losses if loss is not None]
    mean = sum(known) / len(known) if known else 0.0
    if not mean:
        return [1.0] * len(losses)
    return [1.0 if loss is None else max(loss / mean, LEAST_SHARE) for loss in losses]
