"""Several caches into one: records with their bytes as they are, and what is kept beside them.

Records into a cache, many to a transaction.

What became of the records or files that were carried over.

A cache that an exchange makes: there with a record in it, or not there.

Which records a command is about, and a walk through them that holds one part at a time.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.backend.directory import DATA, LOCK, NOTE, is_started
from cache.backend.opening import is_in_use
from cache.errors import CacheError, CacheFullError
from cache.keys import facts_of
from cache.record import Record
from cache.store import Store

_RECORDS, _BYTES = 256, 2**25


class Batches:
    """Takes records one by one and puts them by the batch, each of which is one transaction.

    Cut short, the store is whole and holds a part; done again, the rest is added.
    """

    def __init__(self, store: Store, tell: Callable[[int], None]) -> None:
        """Start for `store`; `tell` is called with how many were looked at."""
        self.report = Report()
        self._store, self._tell = store, tell
        self._waiting: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        """Put `record` sooner or later."""
        self._waiting.append(record)
        self._bytes += len(record.image_bytes)
        if len(self._waiting) >= _RECORDS or self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Put what waits."""
        if not self._waiting:
            return
        there = self._store.contains([record.key for record in self._waiting])
        fresh = [r for r, is_there in zip(self._waiting, there, strict=True) if not is_there]
        added = self._store.put_records(fresh) if fresh else 0
        self.report.done += added
        self.report.present += len(self._waiting) - added
        self._waiting, self._bytes = [], 0
        self._tell(self.report.seen)


_NAMED = 1000


class LeftOutError(CacheError):
    """A format cannot have this one record; the others can be carried over."""


@dataclass
class Report:
    """Counts, and the first of the problems by name."""

    done: int = 0
    """Written to where they were to go."""
    present: int = 0
    """Were there before."""
    broken: int = 0
    """Left out, each for a reason."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the first thousand that were left out."""
    beside: Counter[str] = field(default_factory=Counter)
    """What else was carried over than records, by name."""

    @property
    def seen(self) -> int:
        """All that were looked at."""
        return self.done + self.present + self.broken

    def leave_out(self, name: str, reason: object) -> None:
        """Count one that is not carried over."""
        self.broken += 1
        if len(self.problems) < _NAMED:
            self.problems.append((name, str(reason)))

    def stop(self, error: CacheFullError) -> None:
        """Leave out the rest, for which there is no room.

        Raises:
            CacheFullError: If nothing was carried over before.
        """
        if not self.done:
            raise error
        self.leave_out("all the rest", error)

    def to_fields(self) -> dict[str, Any]:
        """The report for a program."""
        return {
            "done": self.done,
            "present": self.present,
            "broken": self.broken,
            **self.beside,
            "problems": [{"name": name, "problem": reason} for name, reason in self.problems],
        }


def merge(sources: Sequence[Store], target: Store, tell: Callable[[int], None]) -> Report:
    """Add to `target` every record of `sources` whose key it does not have yet.

    The first record of a key is kept, with its time, scores and image bytes; then comes what
    `Store.adopt` takes over. Each batch is one transaction: cut short, the target is whole and
    holds a part; the next call adds the rest. `tell` is called with how many were looked at.

    Raises:
        CacheError: If a cache cannot be read at all or the target cannot be written.
    """
    batches = Batches(target, tell)
    try:
        for source in sources:
            _add_records(source, batches)
        batches.flush()
        for source in sources:
            _adopt(source, target, batches.report)
    except CacheFullError as error:
        batches.report.stop(error)
    return batches.report


def _add_records(source: Store, batches: Batches) -> None:
    for found in walk(source):
        if isinstance(found, Unreadable):
            batches.report.leave_out(f"{source.path} {found.key.hex()}", found.problem)
        else:
            batches.add(found)


def _adopt(source: Store, target: Store, report: Report) -> None:
    adopted = target.adopt(source)
    report.beside["rejections"] += adopted.rejections
    report.beside["served_counts"] += adopted.served
    report.beside["saliency_maps"] += adopted.saliency_maps
    for name, problem in adopted.problems:
        report.leave_out(f"{source.path} {name}", problem)


def check_merge(sources: Sequence[Store], target: Store) -> None:
    """Refuse a target that is one of the sources.

    Raises:
        CacheError: If it is.
    """
    for source in sources:
        if source.path == target.path:
            raise CacheError(f"target must be another cache than the sources, got {target.path}")


@contextmanager
def new_or_nothing(store: Store) -> Iterator[None]:
    """Takes away what was made for `store` here, where something is raised before a record came."""
    was_there = is_started(store.path)
    missing = [path for path in (store.path, *store.path.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if not was_there and _is_empty(store):
            _take_away(store.path, missing)
        raise


def _is_empty(store: Store) -> bool:
    if not is_started(store.path):
        return True
    try:
        is_empty = not len(store)
    except CacheError:
        return False
    store.close()
    return is_empty and not is_in_use(store.path)


def _take_away(path: Path, missing: list[Path]) -> None:
    for name in (DATA, LOCK, NOTE):
        (path / name).unlink(missing_ok=True)
    for folder in missing:
        with suppress(OSError):  # somebody has put something there meanwhile, or it was not made
            folder.rmdir()


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
