"""The generated images that a rank may serve, and the cache they lie in.

`open_store` opens the cache as configured, `SamplePool` knows what can be served out of it, and
`ServedNotes` tells it what was.
"""

import logging
import math
import os
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cache import CacheError, Oldest, Owner, Policy, ServedFirst, Store, cache_exists
from cache.codecs import DEFAULT_CODEC
from online_aug.config import Config
from online_aug.data.image_sets import ImageSet, share_of_endings
from online_aug.errors import UserError
from online_aug.loader.choices import ByClass, NumberSet
from online_aug.loader.slots import Kind
from online_aug.planning import Numbered, Served
from online_aug.planning.held import Memory, held_of
from online_aug.request import Servable

_PIN_S = 366 * 86_400.0
"""Longer than any run; a pin ends with its process."""
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_NOTED_AT_ONCE = 1024
_log = logging.getLogger(__name__)


def open_store(config: Config, train: ImageSet) -> Store:
    """Return the cache of a configuration; it is created if it is missing.

    Args:
        config: Says where the cache is, how it stores images, and what limits its size.
        train: Real images beside which the generated ones are served.

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


def check_writable(config: Config) -> None:
    """Refuse a cache that cannot be written, before anything is started.

    Raises:
        UserError: If there is one on a read-only disk, or of another user.
    """
    path = config.cache.path
    if cache_exists(path) and not all(os.access(each, os.W_OK) for each in path.iterdir()):
        raise UserError(
            "cache.path must be writable, also for a run that only serves from it and notes what "
            f"it reads, got {path}: copy it, or change its owner or mount"
        )


def codec_for(codec: str, train: ImageSet) -> str:
    """Return the codec for images generated from `train`; `auto` follows the files of the set."""
    if codec != "auto":
        return codec
    return "jpeg" if share_of_endings(train, _JPEG_SUFFIXES) > 0.5 else DEFAULT_CODEC


def eviction_policy(config: Config) -> Policy | None:
    """Return which images leave a full cache first; None keeps all and refuses more."""
    match config.cache.eviction:
        case "served":
            return ServedFirst(config.mixing.max_times_sampled or 1)
        case "oldest":
            return Oldest()
        case None:
            return None


def pin_if_awaited(store: Store, config: Config, plan: Sequence[Servable]) -> None:
    """Protect the images that a run waits for, again and again, from eviction."""
    if config.mixing.starvation == "wait":
        pin(store, plan)


def pin(store: Store, plan: Sequence[Servable]) -> None:
    """Protect the images of a plan from eviction while this process lives.

    Every request is made for its key, as the cache keeps a pin for each; only a cache with a limit
    needs them.
    """
    if store.max_gib is not None:
        store.pin([request.key for request in plan], Owner.current(), _PIN_S)


class SamplePool:
    """The generated images that one rank may serve: fresh ones in order, the others at random.

    An image is fresh if it was put into the cache in this run and not served in it. Record `n` of
    the cache's log is fresh for one rank only, the one whose number is `n` modulo the number of
    ranks that share the cache. Everything else of the plan that the cache holds is drawn at random,
    in the order of the plan, so that a resumed run draws as an uninterrupted one.
    """

    def __init__(
        self,
        requests: Served,
        store: Store,
        *,
        rank: int = 0,
        world_size: int = 1,
        max_times_sampled: int | None = None,
        local: tuple[int, int] | None = None,
    ) -> None:
        """Look up what the cache holds of the plan now.

        Args:
            requests: Every request, and every imported image; newer plans follow by `extend`.
            store: Cache of this rank's node.
            rank: Number of this process among all ranks.
            world_size: Number of all ranks.
            max_times_sampled: How often an image of this cache is served in this run at most.
            local: Number of this rank among those that share the cache, and how many they are; None
                if all do.
        """
        self.requests = requests
        self._oldest = 0
        self._store = store
        self.rank, self.world_size = rank, world_size
        self._turn, self.sharers = local or (rank, world_size)
        self.limit = max_times_sampled
        self._by_class: ByClass | None = None
        self.start(store.position(), {})

    def start(self, position: int, times: Mapping[int, int]) -> None:
        """Begin the run at a position of the log.

        Args:
            position: What comes after it in the log is made in this run.
            times: How often each request has been served in this run already.
        """
        self.position_at_start = self._position = position
        self._times = Counter(times)
        self._samples = self._times.total()
        self._fresh: OrderedDict[int, int] = OrderedDict()  # with positions, in their order
        self._others = NumberSet(len(self.requests))
        self._seen = NumberSet(len(self.requests))
        self.made_in_run: dict[int, int] = {}
        """Requests put into the cache in this run, with their positions in the log."""
        self._memory = Memory(self._store, self.requests, position)
        numbers, labels = self._memory.numbers_and_labels()
        if self._by_class is not None:
            self._by_class.begin(numbers, labels)
        self.refresh()  # after the look-up: what comes in between is made in this run
        self._seen.update(numbers)
        self._offer_all(numbers[~np.isin(numbers, [*self.made_in_run])])
        for number in self.made_in_run:
            if self._times[number]:
                self._offer(number)

    def group(self, by_class: ByClass) -> None:
        """Keep the requests that were ever there sorted by class, too."""
        self._by_class = by_class
        self.start(self.position_at_start, dict(self._times))

    @property
    def inserts(self) -> int:
        """Images there have been to serve in this run, each once, even if evicted since."""
        return len(self._seen)

    @property
    def samples(self) -> int:
        """Times that this rank has taken an image."""
        return self._samples

    def variants(self, source_digest: str) -> list[int]:
        """Return the requests of one source image that may still be served, ascending."""
        numbers = self.requests.variants(source_digest)
        return numbers[bisect_left(numbers, self._oldest) :]

    def present(self, numbers: Sequence[int]) -> list[bool]:
        """Return whether the cache holds each request."""
        return self._store.contains([self.requests[number].key for number in numbers])

    def extend(self, plan: Numbered[Servable], *, oldest: int) -> None:
        """Add requests behind those there are; from now on serve none before number `oldest`."""
        first = len(self.requests)
        self.requests.append(plan)
        self._oldest = oldest
        for number in [number for number in self._fresh if number < oldest]:
            del self._fresh[number]
        self._others.grow(len(self.requests))
        self._others.discard_below(oldest)
        self._seen.grow(len(self.requests))
        held = held_of(self._store, plan)
        self._seen.update(first + held.numbers)
        if self._by_class is not None:
            self._by_class.discard_below(oldest)
            for number, label in zip(held.numbers.tolist(), held.labels.tolist(), strict=True):
                self._by_class.add(first + number, label)
        self._offer_all(first + held.numbers)

    def refresh(self) -> None:
        """Take in what was put into the cache since the last call."""
        for position, key, fields in self._store.requests(after=self._position):
            self._position = position
            number = self._memory.number_of(position, key, fields)
            if number is None:
                continue
            self.made_in_run[number] = position
            self._see(number)
            if self._times[number] or number < self._oldest:
                continue
            if position % self.sharers == self._turn:
                self._fresh.setdefault(number, position)
            else:
                self._offer(number)

    def remember(self) -> None:
        """Keep beside the cache what it holds of the plan, if much is new; one rank does."""
        if self._turn == 0:
            self._memory.keep(self._position)

    def take(
        self, rng: np.random.Generator, among: Sequence[int] | None = None
    ) -> tuple[Kind, int] | None:
        """Take a fresh image in the order of making, else any other; None if there is neither.

        Args:
            rng: Draws from the images that are not fresh.
            among: Requests to choose from, ascending; None for all.
        """
        while (number := self._first_fresh(among)) is not None:
            del self._fresh[number]
            if self._is_there(number):
                self._count(number)
                self._offer(number)
                return Kind.FRESH, number
        while (number := self._drawn(rng, among)) is not None:
            is_there = self._is_there(number)
            if is_there:
                self._count(number)
            if not is_there or self._is_used_up(number):
                self._others.discard(number)
            if is_there:
                return Kind.CACHED, number
        return None

    def take_number(self, number: int) -> tuple[Kind, int]:
        """Take one certain request, which is in the cache."""
        is_first = self._fresh.pop(number, None) is not None
        self._count(number)
        return (Kind.FRESH if is_first else Kind.CACHED), number

    def _first_fresh(self, among: Sequence[int] | None) -> int | None:
        if among is None:
            return next(iter(self._fresh), None)
        found = [number for number in among if number in self._fresh]
        return min(found, key=self._fresh.__getitem__, default=None)

    def _drawn(self, rng: np.random.Generator, among: Sequence[int] | None) -> int | None:
        others = self._others if among is None else [n for n in among if n in self._others]
        return others[int(rng.integers(len(others)))] if others else None

    def _see(self, number: int) -> None:
        self._seen.add(number)
        if self._by_class is not None:
            self._by_class.add(number, self.requests[number].target_label)

    def _offer_all(self, numbers: Int[np.ndarray, " n"]) -> None:
        numbers = numbers[numbers >= self._oldest]
        if self.limit is not None:  # of a small limit not every rank has a share
            numbers = numbers[(self._turn - numbers) % self.sharers < self.limit]
        self._others.update(numbers)
        for number in self._times:
            if self._is_used_up(number):
                self._others.discard(number)

    def _offer(self, number: int) -> None:
        if number >= self._oldest and not self._is_used_up(number):
            self._others.add(number)

    def _count(self, number: int) -> None:
        self._times[number] += 1
        self._samples += 1

    def _is_there(self, number: int) -> bool:
        return self.present([number])[0]  # else evicted since

    def _is_used_up(self, number: int) -> bool:
        """Return whether this rank has served its share of the limit; all shares add up to it."""
        if self.limit is None:
            return False
        first = self.made_in_run.get(number, number) % self.sharers
        behind = (self._turn - first) % self.sharers
        return self._times[number] >= math.ceil((self.limit - behind) / self.sharers)


class ServedNotes:
    """Tells the cache which images were served, so that it can evict those first."""

    def __init__(self, store: Store) -> None:
        """Write to `store`, many notes in a transaction."""
        self._store = store
        self._keys: list[bytes] = []

    def add(self, keys: Sequence[bytes]) -> None:
        """Note the images of a batch."""
        self._keys += keys
        if len(self._keys) >= _NOTED_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet; a cache that cannot be written is only logged."""
        keys, self._keys = self._keys, []
        try:
            if keys:
                self._store.note_served(keys)
        except CacheError as error:
            _log.warning("what was served is not noted in the cache: %s", error)
