"""`verify`: whether a cache is whole, and what can be done where it is not.

`evict` and `compact`: making room in a cache and on its disk.

Records out of a data file whose pages no longer lead to them, into a new one.

Each record is found by the letters it starts with and vouched for by its own checksum, so neither
LMDB nor any page of it is asked.
"""

import argparse
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from cache.backend.directory import DATA, check_free, check_readable
from cache.backend.eviction import Keys, Oldest, Policy, RecipeFirst, ServedFirst
from cache.backend.maintenance import VerifyReport, alone, put_in_place
from cache.backend.opening import check_sound, note_sound, probe
from cache.codecs import MAX_IMAGE_BYTES
from cache.commands.options import (
    Command,
    Tell,
    count,
    gib,
    print_json,
    print_table,
    progress,
    size,
)
from cache.contact_sheet import plain
from cache.errors import CacheError, CorruptRecordError, DamagedCacheError
from cache.exchange.merging import Batches, find_recipe
from cache.record import HEADER, MAGIC, Header, Record, key_in, parse
from cache.store import Store

_PROBLEMS_SHOWN = 20


def _verify(options: argparse.Namespace) -> int:
    with (
        Store(options.path, readonly=not options.repair) as store,
        progress("checking", is_quiet=options.json) as tell,
    ):
        check_readable(store.path)  # a store that may write would make one
        salvaged = _made_sound(store.path, options.repair, tell)
        report = store.verify(tell, repair=options.repair)
    if options.json:
        print_json(_report_fields(report) | {"salvaged": salvaged})
    else:
        _print_report(report, salvaged, options)
    return 0 if report.is_clean or options.repair else 1


def _made_sound(path: Path, is_repair: bool, tell: Tell) -> int | None:
    """Records saved from a file whose pages are damaged; None where they are not."""
    try:
        if check_sound(path, trusts_note=False):
            probe(path)  # before another program's file is noted
            note_sound(path)  # so that it is not examined again when it is opened
    except DamagedCacheError as damage:
        if not is_repair:
            raise
        return salvage(path, damage, tell)
    return None


def _report_fields(report: VerifyReport) -> dict[str, Any]:
    return {
        "records": report.records,
        "positions": report.positions,
        "payload_bytes": report.payload_bytes,
        "is_clean": report.is_clean,
        "dropped": [key.hex() for key in report.dropped],
        "problems": [
            {
                "what": problem.what,
                "key": None if problem.key is None else problem.key.hex(),
                "position": problem.position,
            }
            for problem in report.problems
        ],
    }


def _print_report(report: VerifyReport, salvaged: int | None, options: argparse.Namespace) -> None:
    write = sys.stdout.write
    if salvaged is not None:
        write(
            f"{salvaged:,} records taken into a new file; the damaged one is kept as {DAMAGED}. "
            "Rejections, service counts and saliency maps start anew\n"
        )
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        where = f" at position {problem.position}" if problem.position else ""
        key = problem.key.hex() if problem.key else ""
        named = f" {key}" if key not in problem.what else ""
        write(f"{plain(problem.what)}{named}{where}\n")
    if len(report.problems) > _PROBLEMS_SHOWN:
        write(f"... and {len(report.problems) - _PROBLEMS_SHOWN} more (--json lists all)\n")
    verdict = "all well" if report.is_clean else f"{len(report.problems)} problems"
    write(f"{report.records:,} records, {size(report.payload_bytes)}: {verdict}\n")
    if options.repair and not report.is_clean:
        write(f"repaired: {len(report.dropped):,} records dropped, indexes written anew\n")


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repair",
        action="store_true",
        help="drop broken records and write the indexes anew; where LMDB's pages are damaged, "
        "take all whole records into a new file",
    )


VERIFY = Command(
    "verify",
    "check and decode every record; exit status 1 if any is broken and not repaired",
    """runs/cache                      read and decode everything
runs/cache --json               every problem, for a program
runs/cache --repair             drop what is broken, write the rest anew""",
    _verify,
    _add_verify_arguments,
)


_GIB = 2**30


def _evict(options: argparse.Namespace) -> int:
    if (options.key, options.recipe, options.count, options.to_gib) == (None,) * 4:
        raise CacheError("evict must be told how much: give --to-gib, --count, --recipe or --key")
    with _opened(options) as store:
        before = store.stats()
        _check_limit(options.to_gib, before["stored_bytes"], before["entries"])
        gone = store.evict(_policy(store, options), count=options.count, to_gib=options.to_gib or 0)
        after = store.stats()
    freed = before["stored_bytes"] - after["stored_bytes"]
    if options.json:
        print_json({"evicted": gone, "freed_bytes": freed, "entries": after["entries"]})
    else:
        rows = [("evicted", f"{gone:,}"), ("freed within the file", size(freed))]
        print_table("", "", rows=[*rows, ("entries left", f"{after['entries']:,}")])
    return 0


def _check_limit(to_gib: float | None, stored_bytes: int, entries: int) -> None:
    if to_gib is not None and entries and to_gib * _GIB < stored_bytes / entries:
        raise CacheError(
            f"--to-gib must hold at least one record, got {to_gib:g} GiB where one takes "
            f"{stored_bytes // entries} bytes"
        )


def _policy(store: Store, options: argparse.Namespace) -> Policy:
    if options.key is not None:
        keys = store.find(options.key)
        if len(keys) != 1:
            many = "several" if keys else "none"
            raise CacheError(f"key must be one record's, got {options.key!r} which {many} have")
        return Keys(tuple(keys))
    if options.recipe is not None:
        return RecipeFirst((find_recipe(store, options.recipe),), then=None)
    return Oldest() if options.served is None else ServedFirst(options.served)


def _compact(options: argparse.Namespace) -> int:
    with _opened(options) as store:
        freed = store.compact()
        left = store.stats()["file_bytes"]
    if options.json:
        print_json({"freed_bytes": freed, "file_bytes": left})
    else:
        print_table("", "", rows=[("given back to the disk", size(freed)), ("file", size(left))])
    return 0


def _opened(options: argparse.Namespace) -> Store:
    store = Store(options.path)
    check_readable(store.path)  # a store that may write would make one
    return store


def _add_evict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to-gib", type=gib, metavar="G", help="until the records take no more than G GiB"
    )
    parser.add_argument("--count", type=count, metavar="N", help="at most N records")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--served", type=count, metavar="N", help="first what was served N times or more"
    )
    which.add_argument("--recipe", metavar="ID", help="only of this recipe; stats lists them")
    which.add_argument("--key", metavar="KEY", help="only this record")


EVICT = Command(
    "evict",
    "let records go, the oldest first; what a running process has pinned stays",
    """runs/cache --to-gib 50               the oldest, until 50 GiB are left
runs/cache --to-gib 50 --served 4    first what was served 4 times or more
runs/cache --recipe 3f0a             all records of a recipe
runs/cache --key d67bf61c            one record""",
    _evict,
    _add_evict_arguments,
)
COMPACT = Command(
    "compact",
    "give the free pages of the file back to the disk; nobody may have the cache open",
    """runs/cache                         write the file anew without them""",
    _compact,
    lambda parser: None,
)


DAMAGED = "data.mdb.damaged"
"""What the damaged file is called from then on."""
_LARGEST = MAX_IMAGE_BYTES + 2**24
"""Bytes of a record; one that claims more is none."""

Place: TypeAlias = tuple[int, int, int]
"""Position in the log, offset in the file, bytes."""


def salvage(path: Path, damage: DamagedCacheError, tell: Callable[[int, int], None]) -> int:
    """Put a new file with every record that is whole in the place of a damaged one; how many.

    The order of arrival is kept, the damaged file too. Lost is what stood beside the records.
    `tell` is called with how many of how many records are written.

    Raises:
        DamagedCacheError: `damage`, if there is no whole record in the file.
        CacheError: If another process has the cache open, or an earlier damaged file is there.
        CacheFullError: If the disk has no room for the new file.
    """
    if (path / DAMAGED).exists():
        raise CacheError(
            f"{path / DAMAGED} must be moved away before another damaged file takes its place"
        )
    with alone(path), _mapped(path / DATA) as data:
        places = sorted(_places(data))
        if not places:
            raise damage
        check_free(path, sum(size for _, _, size in places))
        with tempfile.TemporaryDirectory(dir=path, prefix=".salvage-") as folder:
            fresh = Path(folder) / DATA
            count = _write(data, places, fresh.parent, tell)
            (path / DATA).rename(path / DAMAGED)
            put_in_place(fresh, path)
    return count


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _places(data: mmap.mmap) -> Iterator[Place]:
    at = data.find(MAGIC)
    while at >= 0:
        record = _record_at(data, at)
        size = 1
        if record is not None:
            found, size = record
            yield found.position, at, size
        at = data.find(MAGIC, at + size)


def _record_at(data: mmap.mmap, at: int) -> tuple[Record, int] | None:
    try:
        size = Header.read(data[at : at + HEADER.size]).end
        if size > _LARGEST:
            return None
        value = data[at : at + size]
        record = parse(key_in(value), value)
        _ = record.request, record.scores
    except CorruptRecordError:
        return None
    return record, size


def _write(
    data: mmap.mmap, places: list[Place], path: Path, tell: Callable[[int, int], None]
) -> int:
    # Synced once, at the end: nobody knows of the file before.
    with Store(path, policy=None, durability="process") as store:
        batches = Batches(store, lambda done: tell(done, len(places)))
        for _, at, size in places:
            value = data[at : at + size]
            batches.add(parse(key_in(value), value))
        batches.flush()
    with (path / DATA).open("rb") as file:
        os.fsync(file.fileno())
    return batches.report.done
