"""The generated images that are there to be served: fresh ones, and the pool of all others.

The cache as a configuration wants it.
"""

import math
from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence

import numpy as np

from cache import Oldest, Owner, Policy, ServedFirst, Store
from cache.codecs import DEFAULT_CODEC
from online_aug.config import Config
from online_aug.data.image_sets import ImageSet, file_names_of
from online_aug.loader.slots import Kind
from online_aug.request import Servable


class Supply:
    """The generated images one rank may serve: fresh ones in order, the others at random.

    Fresh is what was put into the cache in this run and not served in it; record `n` of the log is
    fresh for one of the cache's ranks alone, the one whose number is `n` modulo their count.
    Everything else of the plan that the cache holds is the pool, in the order of the plan, so that
    a resumed run draws from it as an uninterrupted one.
    """

    def __init__(
        self,
        plan: Sequence[Servable],
        store: Store,
        *,
        rank: int,
        world_size: int,
        max_times_sampled: int | None,
        local: tuple[int, int] | None = None,
    ) -> None:
        """Look at what the cache holds of the plan now.

        Args:
            plan: Every request.
            store: The cache of this rank's node.
            rank: Of this process among all.
            world_size: Of the run.
            max_times_sampled: How often an image of this cache is served in this run at most.
            local: Number of this rank among those that this cache serves, and their count; None
                where it serves all.
        """
        self.keys: list[bytes] = []
        """Of all requests, by number."""
        self._numbers: dict[bytes, int] = {}
        self._variants: defaultdict[str, list[int]] = defaultdict(list)
        self._number(plan)
        self._oldest = 0
        self._store = store
        self.rank, self.world_size = rank, world_size
        self._turn, self.sharers = local or (rank, world_size)
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
        self._seen = {number for number, is_present in enumerate(present) if is_present}
        self.refresh()  # after the look at the cache: what comes in between is made in this run
        for number, is_present in enumerate(present):
            if is_present and (number not in self.made_in_run or self._times[number]):
                self._offer(number)

    @property
    def inserts(self) -> int:
        """Images there have been to serve in this run, each once, whether they are still there."""
        return len(self._seen)

    @property
    def samples(self) -> int:
        """Times this rank has taken one."""
        return self._times.total()

    def __len__(self) -> int:
        """Requests of the plan."""
        return len(self._numbers)

    def variants(self, source_digest: str) -> list[int]:
        """The requests made from one image that may still be served, ascending."""
        numbers = self._variants[source_digest]
        return numbers[bisect_left(numbers, self._oldest) :]

    def extend(self, plan: Sequence[Servable], *, oldest: int) -> None:
        """Add requests behind those there are; from now on serve none before number `oldest`."""
        first = len(self.keys)
        self._number(plan)
        keys = self.keys[first:]
        self._oldest = oldest
        self._fresh = deque(number for number in self._fresh if number >= oldest)
        self._pool = [number for number in self._pool if number >= oldest]
        for number, is_present in enumerate(self._store.contains(keys), first):
            if is_present:
                self._seen.add(number)
                self._offer(number)

    def refresh(self) -> None:
        """Take note of what was put into the cache since."""
        for position, key in self._store.tail(self._position):
            self._position = position
            number = self._numbers.get(key)
            if number is None:
                continue
            self.made_in_run[number] = position
            self._seen.add(number)
            if self._times[number] or number < self._oldest:
                continue
            if position % self.sharers == self._turn:
                self._fresh.append(number)
            else:
                self._offer(number)

    def take(
        self, rng: np.random.Generator, among: Sequence[int] | None = None
    ) -> tuple[Kind, int] | None:
        """Fresh in the order it was made, else one of the pool; None where there is neither.

        Args:
            rng: Chooses from the pool.
            among: Requests to choose from, ascending; None for all.
        """
        for number in [n for n in self._fresh if among is None or n in among]:
            self._fresh.remove(number)
            if self._is_there(number):
                self._times[number] += 1
                self._offer(number)
                return Kind.FRESH, number
        while pool := self._pool if among is None else self._offered(among):
            number = pool[int(rng.integers(len(pool)))]
            is_there = self._is_there(number)
            self._times[number] += is_there
            if not is_there or self._is_used_up(number):
                del self._pool[bisect_left(self._pool, number)]
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
        if not self._offered([number]):  # else evicted unnoticed, and made again
            insort(self._pool, number)

    def _offered(self, numbers: Sequence[int]) -> list[int]:
        """Those of some requests that are in the pool."""
        places = [bisect_left(self._pool, number) for number in numbers]
        pairs = zip(numbers, places, strict=True)
        return [number for number, place in pairs if number in self._pool[place : place + 1]]

    def present(self, numbers: Sequence[int]) -> list[bool]:
        """Whether the cache holds each request."""
        return self._store.contains([self.keys[number] for number in numbers])

    def _is_there(self, number: int) -> bool:
        """It was not evicted since."""
        return self.present([number])[0]

    def _is_used_up(self, number: int) -> bool:
        """This rank has served its share of the limit; the shares of all ranks add up to it."""
        if self.limit is None:
            return False
        first = self.made_in_run.get(number, number) % self.sharers
        behind = (self._turn - first) % self.sharers
        return self._times[number] >= math.ceil((self.limit - behind) / self.sharers)

    def _number(self, plan: Sequence[Servable]) -> None:
        """Number requests behind those there are."""
        for number, request in enumerate(plan, len(self.keys)):
            self.keys.append(request.key)
            self._numbers[request.key] = number
            if request.source_digest is not None:
                self._variants[request.source_digest].append(number)


_PIN_S = 366 * 86_400.0
"""Longer than any run; a pin ends with its process."""


_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def codec_for(codec: str, train: ImageSet) -> str:
    """The codec of `cache.codec` for images generated from `train`."""
    if codec != "auto":
        return codec
    names = file_names_of(train)
    jpegs = sum(name.lower().endswith(_JPEG_SUFFIXES) for name in names)
    return "jpeg" if 2 * jpegs > len(names) else DEFAULT_CODEC


def open_store(config: Config, train: ImageSet) -> Store:
    """The cache of a configuration, created where it is missing.

    Args:
        config: Where it is, how images are stored in it, and what bounds it.
        train: The images beside which generated ones are served.

    Raises:
        CacheError: If the path cannot be a cache.
    """
    settings = config.cache
    return Store(
        settings.path,
        codec=codec_for(settings.codec, train),
        max_gib=settings.max_gib,
        policy=eviction_policy(config),
        durability=settings.durability,
    )


def pin_if_awaited(store: Store, config: Config, keys: Sequence[bytes]) -> None:
    """Keep what a run waits for, again and again, from eviction while this process lives."""
    if config.mixing.starvation == "wait":
        pin(store, keys)


def pin(store: Store, keys: Sequence[bytes]) -> None:
    """Keep images from eviction while this process lives."""
    if store.max_gib is not None:
        store.pin(keys, Owner.current(), _PIN_S)


def eviction_policy(config: Config) -> Policy | None:
    """What goes first where the cache is full; None keeps everything."""
    match config.cache.eviction:
        case "served":
            return ServedFirst(config.mixing.max_times_sampled or 1)
        case "oldest":
            return Oldest()
        case None:
            return None
