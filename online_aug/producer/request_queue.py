"""In which order a process takes the requests of a plan: its own part first, then by weight.

What of a plan one process has to make: what others made or make is skipped or waited for.
"""

import heapq
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cache import Owner, Store
from online_aug.config.generation import ScheduleConfig
from online_aug.request import GenerationRequest

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


LOOKED_UP_TOGETHER = 1024
"""Requests looked up in one read of the cache."""
CLAIMED_TOGETHER = 16
"""Requests a transaction; begun before the next are claimed, so that others get some between."""
LEASE_S = 300.0


class Worklist:
    """The requests of one plan as an order has them, each claimed before it is given out.

    Claims that are not begun can be given back, and those under way are renewed, so that no other
    process makes the same images meanwhile.
    """

    def __init__(self, order: Order, store: Store, owner: Owner) -> None:
        """Look at nothing yet.

        Args:
            order: Of the plan; used up.
            store: The cache that tells what is there, rejected or claimed.
            owner: Holder of the claims.
        """
        self._store, self._owner = store, owner
        self._unseen = order
        self._free: deque[GenerationRequest] = deque()
        self._claimed: deque[GenerationRequest] = deque()
        self._under_way: dict[GenerationRequest, None] = {}
        self._elsewhere: list[GenerationRequest] = []
        self._renewed_at = time.monotonic()
        self.reused = 0
        """Requests met that were in the cache already."""

    @property
    def under_way(self) -> int:
        """Requests given out whose end has not been told."""
        return len(self._under_way)

    @property
    def is_done(self) -> bool:
        """Nothing is left to anyone."""
        return not (
            self._unseen or self._free or self._claimed or self._under_way or self._elsewhere
        )

    def take(self, count: int) -> list[GenerationRequest]:
        """The next requests to begin, now claimed; fewer where others have all that is left."""
        if time.monotonic() - self._renewed_at > LEASE_S / 2:
            self._renew()
        while len(self._claimed) < count and self._find_free():
            self._claim()
        taken = [self._claimed.popleft() for _ in range(min(count, len(self._claimed)))]
        self._under_way.update(dict.fromkeys(taken))
        return taken

    def end(self, request: GenerationRequest) -> None:
        """Note that a request is made or rejected."""
        self._under_way.pop(request, None)

    def give_back(self) -> None:
        """End the claims on what is not begun: another process may need it sooner."""
        self._store.release([request.key for request in self._claimed], self._owner)
        self._free.extendleft(reversed(self._claimed))
        self._claimed.clear()

    def release(self) -> None:
        """End all claims, also on what is under way."""
        self.give_back()
        self._store.release([request.key for request in self._under_way], self._owner)

    def reweigh(self, weights: Sequence[float]) -> None:
        """Go on in proportion to other weights of the classes; what is claimed comes first."""
        self._unseen.put_back(list(self._free))
        self._free.clear()
        self._unseen.reweigh(weights)

    def look_again(self) -> None:
        """Look anew at what others had claimed: they may have given it up."""
        self._unseen.extend(self._elsewhere)
        self._elsewhere.clear()

    def _find_free(self) -> bool:
        while not self._free and self._unseen:
            requests = self._unseen.take(LOOKED_UP_TOGETHER)
            found = self._store.status([request.key for request in requests])
            for request, status in zip(requests, found, strict=True):
                if status == "free":
                    self._free.append(request)
                elif status == "claimed":
                    self._elsewhere.append(request)
            self.reused += found.count("present")
        return bool(self._free)

    def _claim(self) -> None:
        count = min(CLAIMED_TOGETHER, len(self._free))
        wanted = [self._free.popleft() for _ in range(count)]
        mine = self._held(wanted)
        self._claimed.extend(request for request in wanted if request in mine)
        self._elsewhere += [request for request in wanted if request not in mine]

    def _renew(self) -> None:
        """Some may have run out, as in a suspended process, and be another's by now."""
        self._held(list(self._under_way))
        mine = self._held(list(self._claimed))
        self._elsewhere += [request for request in self._claimed if request not in mine]
        self._claimed = deque(request for request in self._claimed if request in mine)
        self._renewed_at = time.monotonic()

    def _held(self, requests: list[GenerationRequest]) -> set[GenerationRequest]:
        """Which of some requests are now this process', with a new lease."""
        keys = set(self._store.claim([r.key for r in requests], self._owner, LEASE_S))
        return {request for request in requests if request.key in keys}
