"""A model of a cache in dictionaries. The state machine compares the real cache with it."""

from dataclasses import dataclass, field

import numpy as np

from cache import CacheFullError, Entry, Owner, recipe_of, request_key
from cache.backend.tables import stored_size
from cache.codecs import CODECS
from cache.record import Draft

HERE = Owner.current()
ELSEWHERE = Owner(host="elsewhere", pid=1, started=1)
DEAD = Owner(host=HERE.host, pid=HERE.pid, started=1)


def entry(number):
    """Return one of twelve entries: two methods, two recipes, five sources, two sizes."""
    request = {"method": "ab"[number % 2], "variant": number, "source_digest": f"s{number % 5}"}
    if number % 4 == 2:
        request["resolution"] = 64
    side = 50 if number % 3 else 5
    return Entry(request, np.full((side, side + 1, 3), number, np.uint8), {"confidence": 0.5})


ENTRIES = [entry(number) for number in range(12)]
KEYS = [request_key(offered.request) for offered in ENTRIES]


@dataclass
class Kept:
    """A record of the model."""

    entry: object
    position: int
    served: int = 0
    is_broken: bool = False

    @property
    def stored(self):
        return size_of(self.entry)


def size_of(entry):
    return stored_size(Draft(entry, CODECS["raw"], 0.0).size)


@dataclass
class Model:
    """A cache in memory at Unix time `now`."""

    now: float = 1e9
    records: dict = field(default_factory=dict)
    rejected: dict = field(default_factory=dict)
    claims: dict = field(default_factory=dict)
    pins: dict = field(default_factory=dict)
    saliency: dict = field(default_factory=dict)
    position: int = 0
    evicted: int = 0
    corrupt: int = 0

    def put(self, entries, max_bytes=None, max_times=None):
        """Store entries and return how many were new; evict by `order(max_times)` if needed."""
        offered = {}
        for entry in entries:
            offered.setdefault(request_key(entry.request), entry)
        fresh = {key: entry for key, entry in offered.items() if key not in self.records}
        if max_bytes is not None and fresh:
            self._make_room(sum(map(size_of, fresh.values())), max_bytes, max_times, set(offered))
        for key, entry in fresh.items():
            self.position += 1
            self.records[key] = Kept(entry, self.position)
            self.rejected.pop(key, None)
        for key in offered:
            self.claims.pop(key, None)
        return len(fresh)

    def _make_room(self, needed, max_bytes, max_times, spared):
        excess = sum(kept.stored for kept in self.records.values()) + needed - max_bytes
        victims = []
        for key in self.order(max_times):
            if excess <= 0:
                break
            if key not in spared and not self.is_pinned(key):
                victims.append(key)
                excess -= self.records[key].stored
        if excess > 0:
            raise CacheFullError("cache.max_gib must leave room")
        for key in victims:
            self.evict(key)

    def order(self, max_times):
        """Return keys in order of eviction: those served `max_times` first; None is by age."""
        by_age = [key for _, key in self.log()]
        if max_times is None:
            return by_age
        served = [key for key in by_age if self.records[key].served >= max_times]
        served.sort(key=lambda key: self.records[key].served)
        return list(dict.fromkeys(served + by_age))

    def evict(self, key):
        del self.records[key]
        self.evicted += 1

    def drop_broken(self, key):
        is_broken = key in self.records and self.records[key].is_broken
        if is_broken:
            del self.records[key]
            self.corrupt += 1
        return is_broken

    def lives(self, owner, expires):
        return owner != DEAD and expires > self.now

    def is_pinned(self, key):
        pinned = [(who, until) for (name, who), until in self.pins.items() if name == key]
        return any(self.lives(*pin) for pin in pinned)

    def status(self, key):
        if key in self.records:
            return "present"
        if key in self.rejected:
            return "rejected"
        claim = self.claims.get(key)
        return "claimed" if claim and self.lives(*claim) else "free"

    def claim(self, keys, owner, lease_s):
        mine = [
            key
            for key in dict.fromkeys(keys)
            if self.status(key) == "free"
            or (self.status(key) == "claimed" and self.claims[key][0] == owner)
        ]
        self.claims.update(dict.fromkeys(mine, (owner, self.now + lease_s)))
        return mine

    def release(self, keys, owner):
        for key in keys:
            if key in self.claims and self.claims[key][0] == owner:
                del self.claims[key]

    def reject(self, key, reason):
        if key not in self.records:
            self.rejected[key] = reason
        self.claims.pop(key, None)

    def adopt(self, rejected, counts, maps):
        """Return how many rejections, service counts and maps of another cache were new here."""
        new = {k for k in rejected if k not in self.records and k not in self.rejected}
        self.rejected.update(dict.fromkeys(new, "else"))
        more = {
            key: times
            for key, times in counts.items()
            if key in self.records and self.records[key].served < times
        }
        for key, times in more.items():
            self.records[key].served = times
        missing = {name: data for name, data in maps.items() if name not in self.saliency}
        self.saliency.update(missing)
        return len(new), len(more), len(missing)

    def log(self):
        return sorted((kept.position, key) for key, kept in self.records.items())

    def matching(self, recipe):
        wanted = (recipe or {}).items()
        return {
            key
            for key, kept in self.records.items()
            if wanted <= recipe_of(kept.entry.request).items()
        }
