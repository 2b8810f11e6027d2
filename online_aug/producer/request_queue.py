"""The requests that one generation process has still to make, each claimed before it is given out.

`RequestQueue` asks the cache what is left of a plan, `RequestOrder` says what comes first.
"""

import heapq
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cache import Owner, Store
from online_aug.config.sections import ScheduleConfig
from online_aug.request import GenerationRequest

LOOKUP_BATCH = 1024
"""Requests looked up in one read of the cache."""
CLAIM_BATCH = 16
"""Requests claimed in one transaction; the next are claimed when these have begun."""
LEASE_S = 300.0
"""How long a claim holds unless it is renewed."""
LEAST_LOSS_WEIGHT = 0.1
"""Least weight of a class by its loss, relative to the mean: learnt classes still get images."""
_STRIPE_BYTES = 8

Weights: TypeAlias = Sequence[float] | Mapping[str, float]
"""Weights above 0 of target classes by label, or of source images by digest (others weigh 1)."""


def part_of(plan: Iterable[GenerationRequest], schedule: ScheduleConfig) -> list[GenerationRequest]:
    """Return what this machine makes of a plan: all, or only its own part if it does not help."""
    own = Stripe.of(schedule)
    return [request for request in plan if schedule.helps or own.holds(request)]


@dataclass(frozen=True, kw_only=True)
class Stripe:
    """One of several equal parts of any plan; a request's key decides which part it is in."""

    number: int = 0
    """Number of this part, from 0."""
    count: int = 1
    """How many parts there are."""

    @classmethod
    def of(cls, schedule: ScheduleConfig) -> "Stripe":
        """Return the part of this machine."""
        return cls(number=schedule.stripe, count=schedule.stripes)

    def holds(self, request: GenerationRequest) -> bool:
        """Tell whether a request is in this part."""
        return int.from_bytes(request.key[:_STRIPE_BYTES]) % self.count == self.number

    def split(self, number: int, count: int) -> "Stripe":
        """Return part `number` of `count` parts of this part."""
        return Stripe(number=self.number + self.count * number, count=self.count * count)


class RequestQueue:
    """The requests of a plan that are neither stored nor rejected nor claimed by another process.

    A request is claimed before it is given out, so that no other process makes the same image.
    Claims of requests under way are renewed; those of requests not yet begun can be given back.
    """

    def __init__(
        self,
        plan: Iterable[GenerationRequest],
        store: Store,
        owner: Owner,
        stripe: Stripe | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Take a plan; the cache is asked later.

        Args:
            plan: Requests in the order of the plan.
            store: The cache that tells what is stored, rejected or claimed.
            owner: Who claims.
            stripe: Part of the plan that comes first; None makes no difference between requests.
            weights: See `RequestOrder`.
        """
        self._store, self._owner = store, owner
        self._stripe, self._weights = stripe, weights
        self._losses: Sequence[float | None] | None = None
        self._renewed_at = time.monotonic()
        self.reused = 0
        """Requests that were found in the cache, over all plans."""
        self._take_plan(plan)

    @property
    def under_way(self) -> int:
        """How many requests have been given out and have not ended."""
        return len(self._under_way)

    @property
    def is_done(self) -> bool:
        """Nothing of the plan is left, neither for this process nor for another."""
        return not (
            self._unseen or self._free or self._claimed or self._under_way or self._elsewhere
        )

    def take(self, count: int) -> list[GenerationRequest]:
        """Claim and return the next requests; fewer if other processes have claimed the rest."""
        if time.monotonic() - self._renewed_at > LEASE_S / 2:
            self._renew_claims()
        while len(self._claimed) < count and self._find_free():
            self._claim_next()
        taken = [self._claimed.popleft() for _ in range(min(count, len(self._claimed)))]
        self._under_way.update(dict.fromkeys(taken))
        return taken

    def end(self, request: GenerationRequest) -> None:
        """Note that a request was made or rejected."""
        self._under_way.pop(request, None)

    def give_back(self) -> None:
        """End the claims on requests that have not begun: another process may make them sooner."""
        self._store.release([request.key for request in self._claimed], self._owner)
        self._free.extendleft(reversed(self._claimed))
        self._claimed.clear()

    def release(self) -> None:
        """End all claims, also those on requests under way."""
        self.give_back()
        self._store.release([request.key for request in self._under_way], self._owner)

    def replace_plan(self, plan: Iterable[GenerationRequest]) -> None:
        """End all claims and go on with another plan."""
        self.release()
        self._take_plan(plan)

    def look_again(self) -> None:
        """Look up again what other processes had claimed: they may have given it up."""
        self._unseen.extend(self._elsewhere)
        self._elsewhere.clear()

    def follow_losses(self, losses: Sequence[float | None]) -> None:
        """Weigh the classes by the classifier's loss on them, if it has changed."""
        if losses != self._losses:
            self._losses = losses
            self.reweigh(weights_by_loss(losses))

    def reweigh(self, weights: Weights) -> None:
        """Use other weights from now on; requests that are claimed already still come first.

        Raises:
            ValueError: If there were no weights before.
        """
        self._weights = weights
        self._unseen.put_back(list(self._free))
        self._free.clear()
        self._unseen.reweigh(weights)

    def _take_plan(self, plan: Iterable[GenerationRequest]) -> None:
        self._unseen = RequestOrder(plan, self._stripe, self._weights)
        self._free: deque[GenerationRequest] = deque()
        self._claimed: deque[GenerationRequest] = deque()
        self._under_way: dict[GenerationRequest, None] = {}
        self._elsewhere: list[GenerationRequest] = []

    def _find_free(self) -> bool:
        while not self._free and self._unseen:
            requests = self._unseen.take(LOOKUP_BATCH)
            found = self._store.status([request.key for request in requests])
            for request, status in zip(requests, found, strict=True):
                if status == "free":
                    self._free.append(request)
                elif status == "claimed":
                    self._elsewhere.append(request)
            self.reused += found.count("present")
        return bool(self._free)

    def _claim_next(self) -> None:
        count = min(CLAIM_BATCH, len(self._free))
        wanted = [self._free.popleft() for _ in range(count)]
        mine = self._claim(wanted)
        self._claimed.extend(request for request in wanted if request in mine)
        self._elsewhere += [request for request in wanted if request not in mine]

    def _renew_claims(self) -> None:
        # Some may have run out, as in a suspended process, and belong to another by now.
        self._claim(list(self._under_way))
        mine = self._claim(list(self._claimed))
        self._elsewhere += [request for request in self._claimed if request not in mine]
        self._claimed = deque(request for request in self._claimed if request in mine)
        self._renewed_at = time.monotonic()

    def _claim(self, requests: list[GenerationRequest]) -> set[GenerationRequest]:
        keys = set(self._store.claim([r.key for r in requests], self._owner, LEASE_S))
        return {request for request in requests if request.key in keys}


class RequestOrder:
    """Waiting requests in the order in which they are to be made.

    The own part of the plan comes first, then the rest, which other processes may be working on.
    Without weights each part is in the order of the plan. With weights, each target class, or each
    source image, gets turns in proportion to its weight (stride scheduling); requests of one class
    or image stay in the order of the plan.
    """

    def __init__(
        self,
        plan: Iterable[GenerationRequest],
        stripe: Stripe | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Take a plan.

        Args:
            plan: Requests in the order of the plan.
            stripe: Part that comes first; None makes no difference between requests.
            weights: None keeps the order of the plan.
        """
        self._stripe = stripe or Stripe()
        self._own, self._rest = _WeightedQueues(weights), _WeightedQueues(weights)
        self.extend(plan)

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._own) + len(self._rest)

    def take(self, count: int) -> list[GenerationRequest]:
        """Take out the next requests; fewer at the end."""
        own = self._own.take(count)
        return own + self._rest.take(count - len(own))

    def extend(self, requests: Iterable[GenerationRequest]) -> None:
        """Add requests behind the others of their class or image."""
        for request in requests:
            self._part_of(request).append(request)

    def put_back(self, requests: Sequence[GenerationRequest]) -> None:
        """Add requests that were taken out before the others of their class or image."""
        for request in reversed(requests):
            self._part_of(request).append(request, is_first=True)

    def reweigh(self, weights: Weights) -> None:
        """Replace the weights.

        Raises:
            ValueError: If there are none: the order is that of the plan.
        """
        self._own.reweigh(weights)
        self._rest.reweigh(weights)

    def _part_of(self, request: GenerationRequest) -> "_WeightedQueues":
        return self._own if self._stripe.holds(request) else self._rest


class _WeightedQueues:
    """A queue for each class or image; the next request is taken from the one that is due first."""

    def __init__(self, weights: Weights | None) -> None:
        self._weights = weights
        self._queues: dict[Hashable, deque[GenerationRequest]] = {}
        self._numbers: dict[Hashable, int] = {}
        self._due: list[tuple[float, int, Hashable]] = []
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, request: GenerationRequest, *, is_first: bool = False) -> None:
        name, _ = self._name_and_weight(request)
        queue = self._queues.setdefault(name, deque())
        (queue.appendleft if is_first else queue.append)(request)
        if len(queue) == 1:
            self._plan_turn(name)
        self._count += 1

    def take(self, count: int) -> list[GenerationRequest]:
        taken: list[GenerationRequest] = []
        while self._due and len(taken) < count:
            self._now, _, name = heapq.heappop(self._due)
            taken.append(self._queues[name].popleft())
            if self._queues[name]:
                self._plan_turn(name)
        self._count -= len(taken)
        return taken

    def reweigh(self, weights: Weights) -> None:
        if self._weights is None:
            raise ValueError("weights must replace others, got some for the order of the plan")
        self._weights, self._now, self._due = weights, 0.0, []
        for name, queue in self._queues.items():
            if queue:
                self._plan_turn(name)

    def _plan_turn(self, name: Hashable) -> None:
        _, weight = self._name_and_weight(self._queues[name][0])
        number = self._numbers.setdefault(name, len(self._numbers))  # of equals the first to come
        heapq.heappush(self._due, (self._now + 1 / weight, number, name))

    def _name_and_weight(self, request: GenerationRequest) -> tuple[Hashable, float]:
        if self._weights is None:
            return None, 1.0
        if isinstance(self._weights, Mapping):
            return request.source_digest, self._weights.get(request.source_digest, 1.0)
        return request.target_label, self._weights[request.target_label]


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
