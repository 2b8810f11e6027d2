"""The order in which a process makes the requests of a plan, found out as it goes.

`RequestOrder` walks the numbers of the plan and leaves out what the cache holds. With weights it
looks ahead, and gives each class or image its turns.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool

from online_aug.config.sections import ScheduleConfig
from online_aug.planning import Requests
from online_aug.planning.listed import Numbers
from online_aug.request import GenerationRequest

LEAST_LOSS_WEIGHT = 0.1
"""Least weight of a class by its loss, relative to the mean: learnt classes still get images."""
LOOKED_AHEAD = 2**18
"""Waiting requests among which classes get their turns; of a larger plan the next ones count."""
LOOKED_AHEAD_IF_DRAWN = 2**14
"""The same if the target class is drawn, which takes most of the time of making a request."""
PART = 2**14
"""Numbers of a plan that are walked at once."""

Weights: TypeAlias = Sequence[float] | Mapping[str, float]
"""Weights above 0 of target classes by label, or of source images by digest (others weigh 1)."""
There: TypeAlias = Bool[np.ndarray, "_"]
"""For each request of a plan whether the cache holds its image."""


@dataclass(frozen=True, kw_only=True)
class Stripe:
    """One of several equal parts of any plan; source and variant decide which a request is in."""

    number: int = 0
    """Number of this part, from 0."""
    count: int = 1
    """How many parts there are."""
    machines: int = 1
    """Parts, of which only the one that has this part in it is made at all; 1 for all requests."""

    @classmethod
    def of(cls, schedule: ScheduleConfig) -> "Stripe":
        """Return the part of this machine."""
        machines = 1 if schedule.helps else schedule.stripes
        return cls(number=schedule.stripe, count=schedule.stripes, machines=machines)

    @property
    def whole(self) -> "Stripe":
        """All that is made after this part too."""
        return Stripe(number=self.number % self.machines, count=self.machines)

    def holds(self, request: GenerationRequest) -> bool:
        """Tell whether a request is in this part."""
        return request.spread % self.count == self.number

    def among(self, plan: Requests, numbers: Numbers) -> Bool[np.ndarray, "_"]:
        """Tell which requests of a plan are in this part."""
        if self.count == 1:
            return np.ones(len(numbers), bool)
        return np.asarray(plan.spread(numbers) % self.count == self.number)

    def numbers(self, plan: Requests) -> Iterator[Numbers]:
        """Yield the numbers of this part of a plan, in order and in parts."""
        for first in range(0, len(plan), PART):
            numbers = np.arange(first, min(first + PART, len(plan)))
            yield numbers[self.among(plan, numbers)]

    def split(self, number: int, count: int) -> "Stripe":
        """Return part `number` of `count` parts of this part."""
        return replace(self, number=self.number + self.count * number, count=self.count * count)


class RequestOrder:
    """Waiting requests in the order in which they are to be made.

    The own part of the plan comes first, then the rest, which other processes may be working on.
    Without weights each part is in the order of the plan. With weights, each target class, or each
    source image, gets turns in proportion to its weight (stride scheduling); requests of one class
    or image stay in the order of the plan. Of a plan larger than `LOOKED_AHEAD` classes get their
    turns among as many of the next requests.
    """

    def __init__(
        self,
        plan: Requests,
        stripe: Stripe | None = None,
        weights: Weights | None = None,
        there: There | None = None,
    ) -> None:
        """Take a plan.

        Args:
            plan: Requests in the order of the plan.
            stripe: Part that comes first; None makes no difference between requests.
            weights: None keeps the order of the plan.
            there: What is left out.
        """
        self._plan, self._stripe = plan, stripe or Stripe()
        self._whole, self._there = self._stripe.whole, there
        named = weights if isinstance(weights, Mapping) else {}
        # These are listed: an image of a large weight has all its turns before the others' second.
        self._named = {digest: np.array(plan.variants(digest), np.int64) for digest in named}
        self._own = _Turns(plan, self._coming(is_own=True), weights)
        self._rest = _Turns(plan, self._coming(is_own=False), weights)

    def __bool__(self) -> bool:
        """Tell whether a request waits."""
        return bool(self._own or self._rest)

    def take(self, count: int) -> list[GenerationRequest]:
        """Take out the next requests; fewer at the end."""
        own = self._own.take(count)
        return [self._plan[n] for n in [*own, *self._rest.take(count - len(own))]]

    def extend(self, requests: Sequence[GenerationRequest]) -> None:
        """Add requests that were taken out behind the others of their class or image."""
        for request in requests:
            self._part_of(request).append(self._number(request))

    def put_back(self, requests: Sequence[GenerationRequest]) -> None:
        """Add requests that were taken out before the others of their class or image."""
        for request in reversed(requests):
            self._part_of(request).append(self._number(request), is_first=True)

    def reweigh(self, weights: Weights) -> None:
        """Replace the weights.

        Raises:
            ValueError: If there are none: the order is that of the plan.
        """
        self._own.reweigh(weights)
        self._rest.reweigh(weights)

    def _coming(self, *, is_own: bool) -> Iterator[tuple[str | None, Numbers]]:
        """Yield numbers with the image they belong to, or None for those without a weight."""
        if not is_own and self._stripe.count == self._whole.count:  # there is no rest
            return
        for digest, numbers in self._named.items():
            mine = numbers[self._whole.among(self._plan, numbers)]
            yield digest, self._left(mine, is_own=is_own)
        listed = np.concatenate([*self._named.values(), np.zeros(0, np.int64)])
        for numbers in self._whole.numbers(self._plan):
            mine = numbers[~np.isin(numbers, listed)] if len(listed) else numbers
            yield None, self._left(mine, is_own=is_own)

    def _left(self, numbers: Numbers, *, is_own: bool) -> Numbers:
        missing = numbers if self._there is None else numbers[~self._there[numbers]]
        chosen: Numbers = missing[self._stripe.among(self._plan, missing) == is_own]
        return chosen

    def _part_of(self, request: GenerationRequest) -> "_Turns":
        return self._own if self._stripe.holds(request) else self._rest

    def _number(self, request: GenerationRequest) -> int:
        number = self._plan.number_of(request.key, request.to_fields())
        assert number is not None, "only what was taken out is put back"
        return number


class _Turns:
    """A queue for each class or image; the next request is taken from the one that is due first.

    Images without a weight of their own share a queue, whose requests are due by their variant.
    """

    def __init__(
        self,
        plan: Requests,
        coming: Iterator[tuple[str | None, Numbers]],
        weights: Weights | None,
    ) -> None:
        self._plan, self._coming, self._weights = plan, coming, weights
        self._queues: dict[Hashable, deque[int]] = {}
        self._due: list[tuple[float, int, Hashable]] = []
        self._now = 0.0
        self._count = 0

    def __bool__(self) -> bool:
        self._look_ahead()
        return self._count > 0

    def append(self, number: int, *, is_first: bool = False) -> None:
        digest = self._plan[number].source_digest
        is_named = isinstance(self._weights, Mapping) and digest in self._weights
        (name,) = self._names(digest if is_named else None, np.array([number]))
        self._put(name, number, is_first=is_first)

    def take(self, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count and self:
            self._now, _, name = heapq.heappop(self._due)
            taken.append(self._queues[name].popleft())
            self._count -= 1
            if self._queues[name]:
                self._plan_turn(name)
        return taken

    def reweigh(self, weights: Weights) -> None:
        if self._weights is None:
            raise ValueError("weights must replace others, got some for the order of the plan")
        self._weights, self._now, self._due = weights, 0.0, []
        for name, queue in self._queues.items():
            if queue:
                self._plan_turn(name)

    def _look_ahead(self) -> None:
        while not self._sees_enough and (more := next(self._coming, None)) is not None:
            digest, numbers = more
            for name, number in zip(self._names(digest, numbers), numbers.tolist(), strict=True):
                self._put(name, number)

    @property
    def _sees_enough(self) -> bool:
        if isinstance(self._weights, Sequence):
            is_known = self._plan.knows_targets
            return self._count >= (LOOKED_AHEAD if is_known else LOOKED_AHEAD_IF_DRAWN)
        return bool(self._queues.get(None))

    def _names(self, digest: str | None, numbers: Numbers) -> Sequence[Hashable]:
        if isinstance(self._weights, Sequence):
            labels: list[int] = self._plan.target_labels(numbers).tolist()
            return labels
        return [digest] * len(numbers)

    def _put(self, name: Hashable, number: int, *, is_first: bool = False) -> None:
        queue = self._queues.setdefault(name, deque())
        (queue.appendleft if is_first else queue.append)(number)
        if len(queue) == 1:
            self._plan_turn(name)
        self._count += 1

    def _plan_turn(self, name: Hashable) -> None:
        number = self._queues[name][0]  # of equals the first of the plan
        heapq.heappush(self._due, (self._due_at(name, number), number, name))

    def _due_at(self, name: Hashable, number: int) -> float:
        if self._weights is None:
            return 0.0
        if isinstance(self._weights, Sequence):
            return self._now + 1 / self._weights[int(str(name))]
        if name is None:
            return 1.0 + self._plan.variant(number)
        return self._now + 1 / self._weights[str(name)]


def weights_by_loss(losses: Sequence[float | None]) -> list[float]:
    """Return weights of the classes in proportion to the classifier's loss on them, 1 at the mean.

    Args:
        losses: Mean loss of each class, at least 0; None for a class not seen yet, which counts as
            the mean of the others.

    Example:
        >>> weights_by_loss([2.0, None, 0.0])
        [2.0, 1.0, 0.1]
    """
    known = [loss for loss in losses if loss is not None]
    mean = sum(known) / len(known) if known else 0.0
    if not mean:
        return [1.0] * len(losses)
    return [1.0 if loss is None else max(loss / mean, LEAST_LOSS_WEIGHT) for loss in losses]
