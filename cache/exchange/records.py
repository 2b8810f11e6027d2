"""Read records from a cache, write them to another, and count what became of them."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.errors import CacheError, CacheFullError
from cache.keys import Scalar, index_terms
from cache.record import Record
from cache.store import Store

_RECORDS_READ_AT_ONCE = 1024
_BATCH_RECORDS, _BATCH_BYTES = 256, 2**25
_MAX_PROBLEMS = 1000


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Conditions that a record must meet, all of them; None is no condition."""

    method: str | None = None
    recipe: bytes | None = None
    """Identifier of the recipe."""
    data_set: str | None = None
    """Name of the data set; empty for records that name none."""
    source_label: int | None = None
    target_label: int | None = None
    strength: float | None = None
    after: int = 0
    """Leave out records up to this position of the log."""
    limit: int | None = None
    """Stop after so many records, in the order of arrival."""

    def matches(self, request: Mapping[str, Scalar], classes: Mapping[str, str]) -> bool:
        """Return whether a request and the names of its classes meet the conditions."""
        for name in ("method", "source_label", "target_label"):
            wanted = getattr(self, name)
            if wanted is not None and request.get(name) != wanted:
                return False
        if self.data_set is not None and classes.get("data_set", "") != self.data_set:
            return False
        if self.recipe is not None and index_terms(request).recipe_id != self.recipe:
            return False
        return self.strength is None or _is_close(request.get("strength"), self.strength)

    @property
    def is_all(self) -> bool:
        """Whether every record matches."""
        return self == Selection(after=self.after, limit=self.limit)


@dataclass(frozen=True)
class Unreadable:
    """A record in the log that cannot be read."""

    position: int
    key: bytes
    problem: str


@dataclass
class Report:
    """How many records or files were carried over, and why some were not."""

    done: int = 0
    """How many were written."""
    present: int = 0
    """How many the target had before."""
    broken: int = 0
    """How many were left out, each for a reason."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the first thousand that were left out."""
    beside: Counter[str] = field(default_factory=Counter)
    """How many other things were carried over, such as rejections, by their name."""

    @property
    def seen(self) -> int:
        """How many were looked at."""
        return self.done + self.present + self.broken

    def leave_out(self, name: str, reason: object) -> None:
        """Count one that is not carried over."""
        self.broken += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append((name, str(reason)))

    def stop(self, error: CacheFullError) -> None:
        """Leave out all the rest because the target is full.

        Raises:
            CacheFullError: If nothing was carried over before.
        """
        if not self.done:
            raise error
        self.leave_out("all the rest", error)

    def to_fields(self) -> dict[str, Any]:
        """Return the report as JSON fields."""
        return {
            "done": self.done,
            "present": self.present,
            "broken": self.broken,
            **self.beside,
            "problems": [{"name": name, "problem": reason} for name, reason in self.problems],
        }


class Batches:
    """Writes records to a store in batches, each in one transaction.

    If it is interrupted, the store is whole and holds some of the records; the next attempt adds
    the rest.
    """

    def __init__(self, store: Store, on_progress: Callable[[int], None]) -> None:
        """Start a report; `on_progress` is called with the number of records seen so far."""
        self.report = Report()
        self._store, self._on_progress = store, on_progress
        self._waiting: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        """Queue a record and write the batch when it is full."""
        self._waiting.append(record)
        self._bytes += len(record.image_bytes)
        if len(self._waiting) >= _BATCH_RECORDS or self._bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the queued records that the store does not have yet."""
        if not self._waiting:
            return
        there = self._store.contains([record.key for record in self._waiting])
        new = [r for r, is_there in zip(self._waiting, there, strict=True) if not is_there]
        added = self._store.put_records(new) if new else 0
        self.report.done += added
        self.report.present += len(self._waiting) - added
        self._waiting, self._bytes = [], 0
        self._on_progress(self.report.seen)


def select(store: Store, selection: Selection) -> Iterator[Record | Unreadable]:
    """Yield the records that match, and every unreadable one, which does not count to the limit."""
    left = math.inf if selection.limit is None else selection.limit
    for found in walk(store, selection.after) if left else ():
        if isinstance(found, Unreadable):
            yield found
        elif selection.matches(found.request, found.classes):
            yield found
            left -= 1
            if left <= 0:
                return


def walk(store: Store, after: int = 0) -> Iterator[Record | Unreadable]:
    """Yield the records behind position `after`, in the order of arrival.

    Records that arrive during the walk are left out.
    """
    last = store.position()
    while part := store.tail(after, _RECORDS_READ_AT_ONCE):
        for position, key in part:
            if position > last:
                return
            yield _read(store, position, key)
        after = part[-1][0]


def find_recipe(store: Store, prefix: str) -> bytes:
    """Return the identifier of the one recipe whose hexadecimal form starts with `prefix`.

    Raises:
        CacheError: If no recipe or several do.
    """
    found = [r.id for r in store.recipes() if r.id.hex().startswith(prefix.lower())]
    if len(found) != 1:
        raise CacheError(
            f"recipe must be the start of one identifier that stats lists, got {prefix!r} "
            f"which {len(found)} start with"
        )
    return found[0]


def find_data_set(store: Store, name: str) -> str:
    """Return the one data set of a store whose name is `name`, or starts so.

    Raises:
        CacheError: If none does or several do; names those there are.
    """
    known = store.stats()["by_data_set"]
    found = [name] if name in known else [one for one in known if name and one.startswith(name)]
    if len(found) != 1:
        named = ", ".join(one or "(none)" for one in known)
        raise CacheError(f"data set must be one of {named}, got {name!r}")
    return found[0]


def _read(store: Store, position: int, key: bytes) -> Record | Unreadable:
    try:
        record = store.inspect(key)
        if record is not None:
            _ = (
                record.request,
                record.scores,
                record.classes,
            )  # decoded here, where an error can be reported
    except CacheError as error:
        return Unreadable(position, key, str(error))
    return Unreadable(position, key, "record is missing") if record is None else record


def _is_close(value: object, wanted: float) -> bool:
    return isinstance(value, int | float) and math.isclose(value, wanted, rel_tol=1e-6)
