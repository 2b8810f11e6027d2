"""Which records a command is about, and a walk through them that holds one part at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cache.errors import CacheError
from cache.facts import facts_of
from cache.record import Record
from cache.store import Store

_PART = 1024


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Conditions on a record, all of which hold; None asks for nothing."""

    method: str | None = None
    recipe: bytes | None = None
    """Identifier of its recipe."""
    source_label: int | None = None
    target_label: int | None = None
    strength: float | None = None
    after: int = 0
    """Only from behind this position of the log."""
    limit: int | None = None
    """At most so many, in the order of arrival."""

    def matches(self, stored: Record) -> bool:
        """Whether the record's request is one of those asked for."""
        for name in ("method", "source_label", "target_label"):
            wanted = getattr(self, name)
            if wanted is not None and stored.request.get(name) != wanted:
                return False
        if self.recipe is not None and facts_of(stored.request).recipe_id != self.recipe:
            return False
        return self.strength is None or _is_close(stored.request.get("strength"), self.strength)

    @property
    def is_all(self) -> bool:
        """Whether every record matches."""
        return self == Selection(after=self.after, limit=self.limit)


@dataclass(frozen=True)
class Unreadable:
    """A place of the log whose record cannot be read."""

    position: int
    key: bytes
    problem: str


def walk(store: Store, after: int = 0) -> Iterator[Record | Unreadable]:
    """Every record from behind `after` up to what is the last one now, in the order of arrival."""
    last = store.position()
    while part := store.tail(after, _PART):
        for position, key in part:
            if position > last:
                return
            yield _read(store, position, key)
        after = part[-1][0]


def select(store: Store, selection: Selection) -> Iterator[Record | Unreadable]:
    """The records that match, and all that cannot be read; these do not count to the limit."""
    left = math.inf if selection.limit is None else selection.limit
    for found in walk(store, selection.after) if left else ():
        if isinstance(found, Unreadable):
            yield found
        elif selection.matches(found):
            yield found
            left -= 1
            if left <= 0:
                return


def find_recipe(store: Store, prefix: str) -> bytes:
    """The identifier of the one recipe whose hexadecimal form starts with `prefix`.

    Raises:
        CacheError: If there is none, or several.
    """
    found = [r.id for r in store.recipes() if r.id.hex().startswith(prefix.lower())]
    if len(found) != 1:
        raise CacheError(
            f"recipe must be the start of one identifier that stats lists, got {prefix!r} "
            f"which {len(found)} start with"
        )
    return found[0]


def _read(store: Store, position: int, key: bytes) -> Record | Unreadable:
    try:
        stored = store.inspect(key)
        if stored is not None:
            _ = stored.request, stored.scores  # decoded here, where it can be said
    except CacheError as error:
        return Unreadable(position, key, str(error))
    return Unreadable(position, key, "record is missing") if stored is None else stored


def _is_close(value: object, wanted: float) -> bool:
    return isinstance(value, int | float) and math.isclose(value, wanted, rel_tol=1e-6)
