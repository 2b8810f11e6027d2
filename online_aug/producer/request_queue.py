"""The requests that one generation process has still to make, each claimed before it is given out.

`RequestOrder` says which come next, and `RequestQueue` asks the cache what is left of these.
"""

import time
from collections import deque
from collections.abc import Sequence

from cache import Owner, Store
from online_aug.planning import Requests
from online_aug.producer.request_order import (
    RequestOrder,
    Stripe,
    There,
    Weights,
    weights_by_loss,
)
from online_aug.request import GenerationRequest

LOOKUP_BATCH = 1024
"""Requests looked up in one read of the cache."""
CLAIM_BATCH = 16
"""Requests claimed in one transaction; the next are claimed when these have begun."""
LEASE_S = 300.0
"""How long a claim holds unless it is renewed."""


class RequestQueue:
    """The requests of a plan that are neither stored nor rejected nor claimed by another process.

    A request is claimed before it is given out, so that no other process makes the same image.
    Claims of requests under way are renewed; those of requests not yet begun can be given back.
    """

    def __init__(
        self,
        plan: Requests,
        store: Store,
        owner: Owner,
        stripe: Stripe | None = None,
        weights: Weights | None = None,
        there: There | None = None,
    ) -> None:
        """Take a plan; the cache is asked later.

        Args:
            plan: Requests in the order of the plan.
            store: The cache that tells what is stored, rejected or claimed.
            owner: Who claims.
            stripe: Part of the plan that comes first; None makes no difference between requests.
            weights: See `RequestOrder`.
            there: Requests of the plan that the cache is known to hold; None if none is.
        """
        self._store, self._owner = store, owner
        self._stripe, self._weights = stripe, weights
        self._losses: Sequence[float | None] | None = None
        self._renewed_at = time.monotonic()
        self.reused = 0
        """Requests that were found in the cache, over all plans."""
        self._take_plan(plan, there)

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

    def replace_plan(self, plan: Requests, there: There | None = None) -> None:
        """End all claims and go on with another plan, of which the cache is known to hold some."""
        self.release()
        self._take_plan(plan, there)

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

    def _take_plan(self, plan: Requests, there: There | None) -> None:
        self._unseen = RequestOrder(plan, self._stripe, self._weights, there)
        self.reused += 0 if there is None else int(there.sum())
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
