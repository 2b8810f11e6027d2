"""`stats` and `list`: what is in a cache; they change nothing."""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from cache.accounting import Recipe
from cache.commands.arguments import Command, add_filters, count, selection
from cache.record import Record
from cache.selection import Selection, Unreadable, select
from cache.store import Store
from cache.terminal import (
    moment,
    plain,
    print_json,
    print_json_lines,
    print_table,
    request_words,
    size,
)

_LISTED = 20
_COUNTS_SHOWN = 10
_LINE = "{:>9}  {:12}  {:19}  {:>11}  {:>9}  {}"
_COUNTS = {
    "by_method": "method",
    "by_source_label": "source class",
    "by_target_label": "target class",
    "by_strength": "strength",
    "rejected_by_reason": "rejected as",
}
"""Counts in the statistics and what their rows are called."""


def _stats(options: argparse.Namespace) -> int:
    with Store(options.path, readonly=True) as store:
        found = store.stats()
        recipes = store.recipes()
    if options.json:
        print_json(found | {"by_recipe": [_recipe_fields(recipe) for recipe in recipes]})
    else:
        print_table("", "", rows=[*_sizes(found), *_counts(found), *_recipe_rows(recipes)])
    return 0


def _sizes(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "path", found["path"]
    yield "entries", f"{found['entries']:,}"
    for name in ("payload", "stored", "file", "saliency"):
        yield name, size(found[f"{name}_bytes"])
    for name in ("made_last_hour", "evicted", "corrupt"):
        yield name.replace("_", " "), f"{found[name]:,}"
    yield "claims", f"{found['claims_live']:,} live, {found['claims_dead']:,} dead"
    for owner in found["owners"]:
        yield "owner", f"process {owner['pid']} on {owner['host']}: {owner['claims']:,} claims"
    yield "pins", f"{found['pins_live']:,} live"


def _counts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, head in _COUNTS.items():
        ordered = sorted(found[name].items(), key=lambda counted: (-counted[1], counted[0]))
        for label, number in ordered[:_COUNTS_SHOWN]:
            yield f"{head} {label or '(none)'}", f"{number:,}"
        if len(ordered) > _COUNTS_SHOWN:
            rest = ordered[_COUNTS_SHOWN:]
            total = sum(number for _, number in rest)
            yield f"{head}: {len(rest)} others", f"{total:,}"


def _recipe_rows(recipes: list[Recipe]) -> Iterator[tuple[str, str]]:
    ordered = sorted(recipes, key=lambda recipe: (-recipe.entries, recipe.id))
    for recipe in ordered[:_COUNTS_SHOWN]:
        words = ", ".join(
            f"{name}={value}" for name, value in recipe.fields.items() if value is not None
        )
        held = f"{recipe.entries:,} entries, {size(recipe.payload_bytes)}"
        yield f"recipe {recipe.id.hex()[:12]}", f"{held}: {words}"
    if len(ordered) > _COUNTS_SHOWN:
        yield f"recipes: {len(ordered) - _COUNTS_SHOWN} others", "(--json lists all)"


def _recipe_fields(recipe: Recipe) -> dict[str, Any]:
    return {
        "id": recipe.id.hex(),
        "fields": recipe.fields,
        "entries": recipe.entries,
        "payload_bytes": recipe.payload_bytes,
    }


def _list(options: argparse.Namespace) -> int:
    with Store(options.path, readonly=True) as store:
        rows = map(_row, _listed(store, selection(options, store), options.after))
        if options.json:
            print_json_lines(rows)
        else:
            _print_rows(rows)
    return 0


def _print_rows(rows: Iterable[dict[str, Any]]) -> None:
    # Line by line and not as a table, whose widths would need all of them first.
    head = ""
    for row in rows:
        if not head:
            head = _LINE.format("position", "key", "created", "size", "bytes", "request")
            sys.stdout.write(f"{head}\n")
        sys.stdout.write(f"{plain(_LINE.format(*_cells(row)))}\n")
    if not head:
        sys.stdout.write("no records\n")


def _listed(store: Store, wanted: Selection, after: int | None) -> Iterable[Record | Unreadable]:
    if after is not None:
        return select(store, replace(wanted, after=after))
    if wanted.is_all and wanted.limit is not None:
        return select(store, replace(wanted, after=max(0, store.position() - wanted.limit)))
    matching = select(store, replace(wanted, limit=None))
    positions = deque((found.position for found in matching), maxlen=wanted.limit)
    return select(store, replace(wanted, after=positions[0] - 1)) if positions else ()


def _row(found: Record | Unreadable) -> dict[str, Any]:
    row: dict[str, Any] = {"position": found.position, "key": found.key.hex()}
    return row | ({"problem": found.problem} if isinstance(found, Unreadable) else fields(found))


def fields(stored: Record) -> dict[str, Any]:
    """All of a record but its image, for a program."""
    return {
        "created": stored.created,
        "codec": stored.codec.name,
        "height": stored.height,
        "width": stored.width,
        "bytes": len(stored.image_bytes),
        "scores": stored.scores,
        "request": stored.request,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    start = [str(row["position"]), row["key"][:12]]
    if "problem" in row:
        return [*start, "", "", "", row["problem"]]
    shape = f"{row['width']} x {row['height']}"
    request = request_words(row["request"])
    return [*start, moment(row["created"]), shape, f"{row['bytes']:,}", request]


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    add_filters(parser, limit=_LISTED)
    parser.add_argument(
        "--after",
        type=count,
        metavar="POSITION",
        help="start behind this position of the log (default: end with the newest)",
    )


STATS = Command(
    "stats",
    "entries and sizes, by method, recipe, class and strength; rejections; owners",
    """runs/cache                       what it holds, how large it is
runs/cache --json                the same for a program""",
    _stats,
    lambda parser: None,
)
LIST = Command(
    "list",
    "records in the order of arrival",
    """runs/cache                        the newest 20 records
runs/cache --after 100            20 records from position 101
runs/cache --target-label 3       the newest 20 of class 3""",
    _list,
    _add_list_arguments,
)
