"""What of a plan one process has to make: what others made or make is skipped or waited for."""

import time
from collections import deque
from collections.abc import Sequence

from cache import Owner, Store
from online_aug.generation.order import Order
from online_aug.records import GenerationRequest

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
