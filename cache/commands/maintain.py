"""`verify`, `evict` and `compact`: check a cache, make room in it and on its disk."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cache.backend.directory import check_readable
from cache.backend.eviction import Keys, Oldest, Policy, RecipeFirst, ServedFirst
from cache.backend.opening import check_sound, note_sound, probe
from cache.backend.verify import VerifyReport
from cache.commands.terminal import Command, count, positive, print_json, print_table, progress
from cache.errors import CacheError
from cache.exchange.records import find_recipe
from cache.store import Store
from cache.text import byte_size, printable

_PROBLEMS_SHOWN = 20
_GIB = 2**30


def _verify(options: argparse.Namespace) -> int:
    with (
        Store(options.path, readonly=not options.repair) as store,
        progress("checking", is_quiet=options.json) as on_progress,
    ):
        check_readable(store.path)  # a store that may write would create the cache
        _check_pages(store.path)
        report = store.verify(on_progress, repair=options.repair)
    if options.json:
        print_json(_report_fields(report))
    else:
        _print_report(report, options)
    return 0 if report.is_clean or options.repair else 1


def _check_pages(path: Path) -> None:
    if check_sound(path, trusts_note=False):
        probe(path)  # before a note is written beside another program's file
        note_sound(path)  # the next open need not check the pages again


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


def _print_report(report: VerifyReport, options: argparse.Namespace) -> None:
    write = sys.stdout.write
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        where = f" at position {problem.position}" if problem.position else ""
        key = problem.key.hex() if problem.key else ""
        named = f" {key}" if key not in problem.what else ""
        write(f"{printable(problem.what)}{named}{where}\n")
    if len(report.problems) > _PROBLEMS_SHOWN:
        write(f"... and {len(report.problems) - _PROBLEMS_SHOWN} more (--json lists all)\n")
    verdict = "all well" if report.is_clean else f"{len(report.problems)} problems"
    write(f"{report.records:,} records, {byte_size(report.payload_bytes)}: {verdict}\n")
    if options.repair and not report.is_clean:
        write(f"repaired: {len(report.dropped):,} records dropped, indexes rebuilt\n")


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repair", action="store_true", help="drop broken records and rebuild the indexes"
    )


def _evict(options: argparse.Namespace) -> int:
    if (options.key, options.recipe, options.count, options.to_gib) == (None,) * 4:
        raise CacheError("evict must be told how much: give --to-gib, --count, --recipe or --key")
    with _existing_store(options.path) as store:
        before = store.stats()
        _check_limit(options.to_gib, before["stored_bytes"], before["entries"])
        policy = _policy(store, options)
        evicted = store.evict(policy, count=options.count, to_gib=options.to_gib or 0)
        after = store.stats()
    freed = before["stored_bytes"] - after["stored_bytes"]
    if options.json:
        print_json({"evicted": evicted, "freed_bytes": freed, "entries": after["entries"]})
    else:
        rows = [("evicted", f"{evicted:,}"), ("freed within the file", byte_size(freed))]
        print_table("", "", rows=[*rows, ("entries left", f"{after['entries']:,}")])
    return 0


def _existing_store(path: Path) -> Store:
    store = Store(path)
    check_readable(store.path)  # a store that may write would create the cache
    return store


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


def _add_evict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to-gib", type=positive, metavar="G", help="until the records take no more than G GiB"
    )
    parser.add_argument("--count", type=count, metavar="N", help="at most N records")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--served", type=count, metavar="N", help="first the records served N times or more"
    )
    which.add_argument("--recipe", metavar="ID", help="only of this recipe; stats lists them")
    which.add_argument("--key", metavar="KEY", help="only this record")


def _compact(options: argparse.Namespace) -> int:
    with _existing_store(options.path) as store:
        freed = store.compact()
        left = store.stats()["file_bytes"]
    if options.json:
        print_json({"freed_bytes": freed, "file_bytes": left})
    else:
        rows = [("given back to the disk", byte_size(freed)), ("file", byte_size(left))]
        print_table("", "", rows=rows)
    return 0


VERIFY = Command(
    "verify",
    "check and decode every record; exit status 1 if any is broken and not repaired",
    """runs/cache                      read and decode everything
runs/cache --json               every problem, for a program
runs/cache --repair             drop broken records, rebuild the indexes""",
    _verify,
    _add_verify_arguments,
)
EVICT = Command(
    "evict",
    "remove records, the oldest first; records that a running process has pinned stay",
    """runs/cache --to-gib 50               the oldest, until 50 GiB are left
runs/cache --to-gib 50 --served 4    first the records served 4 times or more
runs/cache --recipe 3f0a             all records of a recipe
runs/cache --key d67bf61c            one record""",
    _evict,
    _add_evict_arguments,
)
COMPACT = Command(
    "compact",
    "give the file's free pages back to the disk; no other process may have the cache open",
    """runs/cache                         rewrite the file without its free pages""",
    _compact,
    lambda parser: None,
)
