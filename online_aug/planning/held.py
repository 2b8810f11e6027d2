"""Which images of a plan a cache holds: one pass over the cache's log, remembered beside it.

A record's own fields say which request of the plan it may be, and its key confirms it. What was
confirmed is kept in the directory of the cache under the digest of the plan, so that the next
process reads only what was stored since. A record that has gone since is noticed when it is asked
for.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from cache import CorruptRecordError, Rejection, Scalar, Store, cache_exists, content_digest
from online_aug.console import Tally, progress
from online_aug.documents import open_regular
from online_aug.files import alone, write_atomically
from online_aug.planning.listed import Listed, Numbered, Numbers, Served
from online_aug.planning.plan import Plan, Requests
from online_aug.request import Servable

FOLDER, SUFFIX = "plans", ".held"
"""Folder of these files in the directory of a cache, and how their names end."""
ROW = np.dtype([("position", "<u8"), ("number", "<u8"), ("label", "<u4")])
"""A record: its position in the log, the number of its request, and the target class."""
MOST_KEPT = 32
"""Plans of which is kept what a cache holds; the oldest files go first."""
_LEAST_NEW, _LEAST_NEW_SHARE = 256, 8
"""A file is written if so many records were looked at anew, and an n-th of those before."""
_SHOWN_FROM = 20_000
_LOOKED_UP = 1024
_VERSION = 1
_NAMES = {"version": int, "position": int, "removed": int, "digest": str}
_log = logging.getLogger(__name__)

Rows = Shaped[np.ndarray, "_"]
NO_ROWS: Rows = np.zeros(0, ROW)


@dataclass(frozen=True, eq=False)
class Held:
    """The images of a plan that a cache holds, or held when they were last looked for."""

    rows: Rows
    """Rows of `ROW` in order of arrival."""
    position: int
    """Position in the log up to which they were looked for."""

    @property
    def numbers(self) -> Numbers:
        """Numbers of their requests."""
        return self.rows["number"].astype(np.int64)

    @property
    def labels(self) -> Numbers:
        """Their target classes."""
        return self.rows["label"].astype(np.int64)

    def there(self, size: int) -> Bool[np.ndarray, "_"]:
        """Return for each request of a plan of this size whether its image is held."""
        there = np.zeros(size, bool)
        there[self.numbers] = True
        return there


def held_of(store: Store, plan: Numbered[Servable]) -> Held:
    """Find out which images of a plan a cache holds, and remember it there for the next time."""
    if isinstance(plan, Listed):
        return _of_list(store, plan)
    if isinstance(plan, Served):
        return _of_parts(store, plan)
    if not isinstance(plan, Plan) or not cache_exists(store.path):
        return Held(NO_ROWS, 0)
    path = path_of(store, plan)
    with _alone(store, path) as is_kept:
        known, removed = _read(path), _removed(store)
        before = known.held if known is not None else Held(NO_ROWS, 0)
        if before.position > store.position():  # another cache in its place
            before = Held(NO_ROWS, 0)
        elif known is not None and known.removed != removed:
            before = Held(_not_gone(store, before.rows), before.position)
        found = extended(store, plan, before)
        if is_kept and _is_worth_it(before, found.position):
            _write(path, found, removed)
    return found


def holds_any(store: Store, plan: Requests) -> bool:
    """Tell whether a cache holds an image of a plan; the first one ends the look-up."""
    if not isinstance(plan, Plan):
        return len(_of_list(store, plan).rows) > 0
    known = _read(path_of(store, plan))
    some = [] if known is None else known.held.numbers[-_LOOKED_UP:].tolist()
    if any(store.contains([plan[number].key for number in some if number < len(plan)])):
        return True
    return any(True for _ in _arrivals(store, plan, 0))


def path_of(store: Store, plan: Plan) -> Path:
    """Return the file that remembers what a cache holds of a plan."""
    return store.path / FOLDER / f"{plan.digest.hex()}{SUFFIX}"


def extended(store: Store, plan: Plan, before: Held) -> Held:
    """Add what was stored since."""
    last = store.position()
    with progress(
        "looking for images of the plan in the cache",
        last - before.position,
        enabled=last - before.position >= _SHOWN_FROM,
    ) as bar:
        new = np.array(list(_arrivals(store, plan, before.position, bar)), ROW)
    return Held(np.concatenate([before.rows, np.sort(new, order="position")]), last)


def _arrivals(
    store: Store, plan: Plan, after: int, bar: Tally | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield rows of the records of a plan behind a position of the log."""
    for recipe in plan.recipes:
        for position, key, fields in store.requests(recipe, after):
            if bar is not None:
                bar.advance()
            number = plan.number_of(key, fields)
            if number is not None:
                yield position, number, plan[number].target_label


def _of_list(store: Store, plan: Listed[Servable]) -> Held:
    position = store.position() if cache_exists(store.path) else 0
    if not len(plan) or not position:
        return Held(NO_ROWS, position)
    there = store.contains([image.key for image in plan])
    numbers = np.flatnonzero(there).tolist()
    rows = [(0, number, plan[number].target_label) for number in numbers]
    return Held(np.array(rows, ROW), position)


def _of_parts(store: Store, parts: Served) -> Held:
    found, position = [NO_ROWS], 0
    for which, part in enumerate(parts.parts):
        held = held_of(store, part)
        rows = held.rows.copy()
        rows["number"] += parts.first(which)
        found, position = [*found, rows], held.position
    return Held(np.concatenate(found), position)


def rejected_of(store: Store, plan: Numbered[Servable]) -> dict[int, Rejection]:
    """Return why requests of a plan were rejected, by number."""
    found = {}
    for key, rejection in store.rejections().items():
        with suppress(CorruptRecordError):  # noted by another program
            number = plan.number_of(key, rejection.request)
            if number is not None:
                found[number] = rejection
    return found


class Memory:
    """Keeps up what a cache holds of several plans while images arrive."""

    def __init__(self, store: Store, requests: Served, after: int) -> None:
        """Look up what it holds now.

        Args:
            store: The cache.
            requests: The plans; of the first is kept what was found.
            after: Position in the log above which records will be asked for.
        """
        self._store, self._requests = store, requests
        self._held = held_of(store, requests)
        self._first = len(requests.parts[0]) if requests.parts else 0
        later = self._held.rows[self._held.rows["position"] > after]
        self._known: dict[int, int] = dict(
            zip(later["position"].tolist(), later["number"].tolist(), strict=True)
        )
        self._new: list[tuple[int, int, int]] = []

    def numbers_and_labels(self) -> tuple[Numbers, Numbers]:
        """Return what the cache held at the start."""
        return self._held.numbers, self._held.labels

    def number_of(self, position: int, key: bytes, fields: Mapping[str, Scalar]) -> int | None:
        """Return the number of a record that has arrived; None if it is of no plan.

        Args:
            position: Position of the record in the log.
            key: Key of the record.
            fields: Fields of its request.
        """
        number = self._known.pop(position, None)
        if number is None:
            number = self._requests.number_of(key, fields)
            if number is not None and number < self._first:
                self._new.append((position, number, self._requests[number].target_label))
        return number

    def keep(self, position: int) -> None:
        """Keep what was found up to a position of the log, if it is worth it."""
        plan = self._requests.parts[0] if self._requests.parts else None
        if not isinstance(plan, Plan) or not _is_worth_it(self._held, position):
            return
        mine = self._held.rows[self._held.rows["number"] < self._first]
        held = Held(np.concatenate([mine, np.array(self._new, ROW)]), position)
        path = path_of(self._store, plan)
        with _alone(self._store, path) as is_kept:
            known = _read(path)
            if is_kept and (known is None or known.held.position < position):
                _write(path, held, _removed(self._store))
        self._held, self._new = held, []


def _is_worth_it(before: Held, position: int) -> bool:
    return position - before.position >= max(_LEAST_NEW, before.position // _LEAST_NEW_SHARE)


def _removed(store: Store) -> int:
    """Return how many records were ever removed from a cache."""
    return store.position() - len(store)


def _not_gone(store: Store, rows: Rows) -> Rows:
    left = [position for part in _parts(store) for position in part]
    return rows[np.isin(rows["position"], np.array(left, np.uint64))]


def _parts(store: Store) -> Iterator[Sequence[int]]:
    part = [0]
    while part := [position for position, _ in store.tail(part[-1], 2**16)]:
        yield part


@dataclass(frozen=True, eq=False)
class _Known:
    held: Held
    removed: int


def _read(path: Path) -> _Known | None:
    """Read a file; None if there is none, or if it is broken or of another version."""
    try:
        with open_regular(path) as file:
            line, rest = file.readline(2**12), file.read()
        head = json.loads(line)
        if {name: type(value) for name, value in head.items()} != _NAMES:
            return None
        if head["version"] != _VERSION or head["digest"] != content_digest(rest):
            return None
        return _Known(Held(np.frombuffer(rest, ROW), head["position"]), head["removed"])
    except (OSError, ValueError, AttributeError, RecursionError, MemoryError):
        return None


def _write(path: Path, held: Held, removed: int) -> None:
    rest = held.rows.tobytes()
    values = (_VERSION, held.position, removed, content_digest(rest))
    head = dict(zip(_NAMES, values, strict=True))
    try:
        write_atomically(path, json.dumps(head).encode() + b"\n" + rest)
        files = sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda file: -file.stat().st_mtime)
        for old in files[MOST_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("what the cache holds of the plan is not kept: %s", error)


@contextmanager
def _alone(store: Store, path: Path) -> Iterator[bool]:
    """Keep others from looking meanwhile, who find the result then; False if it cannot be kept."""
    folder = path.parent
    if store.readonly or not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        yield False
        return
    with alone(folder / ".lock"):
        yield True
