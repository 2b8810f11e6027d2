"""`evict` and `compact`: making room in a cache and on its disk."""

import argparse

from cache.commands.arguments import Command, count, gib
from cache.errors import CacheError
from cache.eviction import Keys, Oldest, Policy, RecipeFirst, ServedFirst
from cache.location import check_readable
from cache.selection import find_recipe
from cache.store import Store
from cache.terminal import print_json, print_table, size

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
