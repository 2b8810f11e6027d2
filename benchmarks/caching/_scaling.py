"""Measure how the cost of operations grows with the records, and how much of it is LMDB's."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import lmdb
import numpy as np

from benchmarks._timing import faster, in_turns, rate
from benchmarks.caching._records import fill_store
from cache import Store
from cache.backend.index import EVERYTHING

if TYPE_CHECKING:
    from benchmarks.caching.speed import Bench

BASE_RECORDS = 10_000
CALLS = 64

Look: TypeAlias = Callable[[int], object]
Turns: TypeAlias = dict[int, list[bytes]]
"""Keys of each repetition, computed before the clock starts."""


def compare(bench: "Bench") -> None:
    """Print the cost of operations over that in a cache of ten thousand, and for bare LMDB."""
    small = bench.folder / "small"
    fill_store(bench.photos, small, min(BASE_RECORDS, bench.records))
    print(
        f"\n| cost | of that at {BASE_RECORDS:,} records | cache | other |\n|---|---|---|---|",
        flush=True,
    )
    fewer = replace(bench, records=min(BASE_RECORDS, bench.records))
    stores = {"here": Store(bench.store, readonly=True), "small": Store(small, readonly=True)}
    for store in stores.values():
        _walk_indexes(store)
    for name, calls, call in _operations((bench, fewer)):
        _print_row(name, calls, bench, {side: partial(call, of) for side, of in stores.items()})
    for store in stores.values():
        store.close()
    for name, table, keys in _BARE_LOOKS:
        with (
            _bare(table, _by_turn(bench, keys), bench.store) as here,
            _bare(table, _by_turn(fewer, keys), small) as there,
        ):
            _print_row(f"bare LMDB, {name}", CALLS, bench, {"here": here, "small": there})
    shutil.rmtree(small)


def _print_row(name: str, calls: int, bench: "Bench", sides: dict[str, Look]) -> None:
    seconds = in_turns(sides, bench.repetitions)
    cost = faster(seconds, "small", "here")
    here, there = (rate(seconds, side, calls) for side in ("here", "small"))
    print(f"| {name} | {cost:.2f} x | {here:,.0f}/s | {there:,.0f}/s |", flush=True)


def _operations(sizes: Sequence["Bench"]) -> list[tuple[str, int, Callable[[Store, int], object]]]:
    keys = {sized.records: _by_turn(sized, _keys) for sized in sizes}
    # In this order: what opens the cache anew unmaps the pages that the walk has touched.
    return [
        ("`contains`, one key", CALLS, partial(_contain, keys)),
        ("`sample`, 64 keys", 1, _draw),
        ("`tail`, the last 64", 1, lambda store, _: store.tail(store.position() - 64)),
        ("`sample`, 64 keys, newly opened", 1, _draw_anew),
        ("opening", 8, _reopen),
    ]


def _reopen(store: Store, _: int) -> None:
    for _ in range(8):
        store.close()
        store.open()


def _contain(keys: dict[int, Turns], store: Store, repetition: int) -> None:
    for key in keys[len(store)][repetition]:
        store.contains([key])


def _draw(store: Store, repetition: int) -> None:
    store.sample(np.random.default_rng(repetition + 1), CALLS)


def _draw_anew(store: Store, repetition: int) -> None:
    if repetition < 0:  # from here on a page that it looks at for the first time is a page fault
        store.close()
    _draw(store, repetition)


def _walk_indexes(store: Store) -> None:
    """Read the pages that lead to records, which a cache in use has in memory."""
    with store._environment.transaction() as (txn, tables):
        for table in tables:
            with txn.cursor(table) as cursor:
                for _ in cursor.iternext(values=False):
                    pass


def _keys(bench: "Bench", repetition: int) -> list[bytes]:
    return bench.keys(repetition, CALLS)


def _ordinals(bench: "Bench", repetition: int) -> list[bytes]:
    drawn = bench.draw(repetition, CALLS)
    return [EVERYTHING + number.to_bytes(8, "big") for number in drawn]


def _by_turn(bench: "Bench", keys: Callable[["Bench", int], list[bytes]]) -> Turns:
    return {repetition: keys(bench, repetition) for repetition in range(-1, bench.repetitions)}


@contextmanager
def _bare(table: bytes, keys: Turns, path: Path) -> Iterator[Look]:
    """Yield a function that finds keys in bare LMDB, a transaction each, all pages in memory."""
    with lmdb.open(
        str(path), map_size=2**40, max_dbs=16, readonly=True, lock=False, lib_version=0
    ) as environment:
        found = environment.open_db(table, create=False)
        with environment.begin(db=found) as txn:
            for _ in txn.cursor().iternext(values=False):
                pass

        def look(repetition: int) -> None:
            for key in keys[repetition]:
                with environment.begin(db=found) as txn:
                    txn.cursor().set_key(key)

        yield look


_BARE_LOOKS = (
    ("a key of `contains`", b"records", _keys),
    ("an entry of `sample`", b"members", _ordinals),
)
"""The look-ups that the cache's operations consist of."""
