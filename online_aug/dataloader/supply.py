"""The generated images that are there to be served: fresh ones, and the pool of all others."""

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np

from cache import Store
from online_aug.dataloader.slots import Kind


class Supply:
    """The generated images one rank may serve: fresh ones in order, the others at random.

    Fresh is what was put into the cache in this run and not served in it; record `n` of the log is
    fresh for rank `n mod world_size` alone. Everything else of the plan that the cache holds is the
    pool, in the order of the plan, so that a resumed run draws from it as an uninterrupted one.
    """

    def __init__(
        self,
        keys: Sequence[bytes],
        store: Store,
        *,
        rank: int,
        world_size: int,
        max_times_sampled: int | None,
    ) -> None:
        """Look at what the cache holds of the plan's `keys` now."""
        self.keys = list(keys)
        """Of all requests, by number."""
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._oldest = 0
        self._store = store
        self._rank, self._world_size = rank, world_size
        self.limit = max_times_sampled
        self.start(store.position(), {})

    def start(self, position: int, times: Mapping[int, int]) -> None:
        """Begin the run at a position of the log, `times` having been served in it already."""
        self.position_at_start = self._position = position
        self._times = Counter(times)
        self._fresh: deque[int] = deque()
        self._pool: list[int] = []
        self.made_in_run: dict[int, int] = {}
        """Requests put into the cache in this run, and their positions in the log."""
        present = self._store.contains(list(self._numbers))
        self.refresh()  # after the look at the cache: what comes in between is made in this run
        for number, is_present in enumerate(present):
            if is_present and (number not in self.made_in_run or self._times[number]):
                self._offer(number)

    def __len__(self) -> int:
        """Requests of the plan."""
        return len(self._numbers)

    def extend(self, keys: Sequence[bytes], *, oldest: int) -> None:
        """Add requests behind those there are; from now on serve none before number `oldest`."""
        first = len(self.keys)
        self.keys += keys
        self._numbers |= {key: number for number, key in enumerate(keys, first)}
        self._oldest = oldest
        self._fresh = deque(number for number in self._fresh if number >= oldest)
        self._pool = [number for number in self._pool if number >= oldest]
        for number, is_present in enumerate(self._store.contains(list(keys)), first):
            if is_present:
                self._offer(number)

    def refresh(self) -> None:
        """Take note of what was put into the cache since."""
        for position, key in self._store.tail(self._position):
            self._position = position
            number = self._numbers.get(key)
            if number is None:
                continue
            self.made_in_run[number] = position
            if self._times[number] or number < self._oldest:
                continue
            if position % self._world_size == self._rank:
                self._fresh.append(number)
            else:
                self._offer(number)

    def take(self, rng: np.random.Generator) -> tuple[Kind, int] | None:
        """Fresh in the order it was made, else one of the pool; None where there is neither."""
        while self._fresh:
            number = self._fresh.popleft()
            if self._is_there(number):
                self._times[number] += 1
                self._offer(number)
                return Kind.FRESH, number
        while self._pool:
            place = int(rng.integers(len(self._pool)))
            number = self._pool[place]
            is_there = self._is_there(number)
            self._times[number] += is_there
            if not is_there or self._is_used_up(number):
                del self._pool[place]
            if is_there:
                return Kind.CACHED, number
        return None

    def take_number(self, number: int) -> tuple[Kind, int]:
        """One request of the plan that is in the cache."""
        is_first = number in self._fresh
        if is_first:
            self._fresh.remove(number)
        self._times[number] += 1
        return (Kind.FRESH if is_first else Kind.CACHED), number

    def _offer(self, number: int) -> None:
        if number < self._oldest or self._is_used_up(number):
            return
        place = bisect_left(self._pool, number)
        is_offered = number in self._pool[place : place + 1]  # evicted unnoticed, and made again
        if not is_offered:
            self._pool.insert(place, number)

    def _is_there(self, number: int) -> bool:
        """It was not evicted since."""
        return self._store.contains([self.keys[number]])[0]

    def _is_used_up(self, number: int) -> bool:
        """This rank has served its share of the limit; the shares of all ranks add up to it."""
        if self.limit is None:
            return False
        first = self.made_in_run.get(number, number) % self._world_size
        behind = (self._rank - first) % self._world_size
        return self._times[number] >= math.ceil((self.limit - behind) / self._world_size)
