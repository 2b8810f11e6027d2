"""`stats` and `list`: what is in a cache; they change nothing.

`show`: one record, or a contact sheet of some.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.backend.tables import Recipe
from cache.codecs import Pixels
from cache.commands.options import (
    Command,
    add_classes,
    add_filters,
    classes,
    count,
    moment,
    print_json,
    print_json_lines,
    print_table,
    request_words,
    selection,
    size,
)
from cache.contact_sheet import Cell, draw_sheet, plain, words_of
from cache.errors import CacheError
from cache.exchange.exporting import check_free, staged_file
from cache.exchange.image_files import find_sources, pixels_of
from cache.exchange.merging import Selection, Unreadable, select
from cache.exchange.rows import ClassNames
from cache.record import Record
from cache.store import Store

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


_ON_A_SHEET, _MOST = 16, 400


def _show(options: argparse.Namespace) -> int:
    target = options.out or Path(f"{options.key or 'contact_sheet'}.png")
    check_free(target, force=options.force)
    names = classes(options)
    with Store(options.path, readonly=True) as store:
        records = _chosen(store, options)
    sheet = _sheet(records, names, options)
    with staged_file(target, force=options.force) as path:
        path.write_bytes(sheet)
    if options.json:
        print_json(
            {"image": str(target), "records": [{"key": r.key.hex()} | fields(r) for r in records]}
        )
    elif options.key is not None:
        print_table("", "", rows=[*_rows(records[0]), ("image", str(target))])
    else:
        print_table("", "", rows=[("records", str(len(records))), ("image", str(target))])
    return 0


def _chosen(store: Store, options: argparse.Namespace) -> list[Record]:
    if options.key is not None:
        return [_found(store, options.key)]
    wanted = selection(options, store)
    found = select(store, replace(wanted, limit=min(options.limit, _MOST)))
    records = [record for record in found if isinstance(record, Record)]
    if not records:
        raise CacheError(f"there must be a record to show, got none that fits in {store.path}")
    return records


def _found(store: Store, prefix: str) -> Record:
    keys = store.find(prefix)
    if len(keys) > 1:
        raise CacheError(
            f"key must be one record's, got {prefix!r} which several start with; give more digits"
        )
    stored = store.inspect(keys[0]) if keys else None
    if stored is None:
        raise CacheError(f"key must be a record's, got {prefix!r} which none starts with")
    return stored


def _sheet(records: Sequence[Record], names: ClassNames, options: argparse.Namespace) -> bytes:
    digests = [str(record.request.get("source_digest")) for record in records]
    files = {} if options.sources is None else find_sources(options.sources, digests)
    cells = [
        _cell(record, files.get(digest), names)
        for record, digest in zip(records, digests, strict=True)
    ]
    has_sources = options.sources is not None
    return draw_sheet(cells, f"{len(cells)} of {options.path}", has_sources=has_sources)


def _cell(record: Record, source: Path | None, names: ClassNames) -> Cell:
    words = [*words_of(record.request, names.spoken), f"key: {record.key.hex()[:12]}"]
    return Cell(record.image, _source(source), words)


def _source(path: Path | None) -> Pixels | None:
    try:
        return None if path is None else pixels_of(path.read_bytes())
    except (CacheError, OSError):
        return None


def _rows(stored: Record) -> list[tuple[str, str]]:
    described: dict[str, Any] = {
        "key": stored.key.hex(),
        "position": stored.position,
        "created": moment(stored.created),
        "size": f"{stored.width} x {stored.height} {stored.codec.name}, "
        + size(len(stored.image_bytes)),
        **{f"request {name}": value for name, value in stored.request.items()},
        **{f"score {name}": value for name, value in stored.scores.items()},
    }
    return [(name, str(value)) for name, value in described.items()]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", nargs="?", metavar="KEY", help="one record: its key or the first digits of it"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to draw (default KEY.png, contact_sheet.png)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument(
        "--sources",
        type=Path,
        metavar="DIR",
        help="folder of the training images, which are found by the digest of their files",
    )
    add_classes(parser)
    add_filters(parser, limit=_ON_A_SHEET)


SHOW = Command(
    "show",
    "draw one record, or a contact sheet of some: source, generated image, request",
    """runs/cache                                   contact_sheet.png with 16 records
runs/cache --sources data/birds/train        with the images they were made from
runs/cache d67bf61c --out bird.png           the record whose key starts so
runs/cache --target-label 3 --limit 40       40 of class 3""",
    _show,
    _add_arguments,
)
