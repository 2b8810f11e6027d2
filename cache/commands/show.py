"""`stats`, `list` and `show`: look into a cache without changing it."""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.backend.tables import Recipe
from cache.codecs import Pixels
from cache.commands.browse import MOST, show_page
from cache.commands.terminal import (
    Command,
    add_classes,
    add_filters,
    class_names,
    count,
    local_time,
    print_json,
    print_json_lines,
    print_table,
    request_line,
    selection,
)
from cache.contact_sheet import Cell, caption_of, draw_sheet
from cache.errors import CacheError
from cache.exchange.exporting import check_free, staged_file
from cache.exchange.image_files import find_sources, pixels_of
from cache.exchange.metadata import ClassNames
from cache.exchange.records import Selection, Unreadable, select
from cache.html_page.entries import MAX_PICTURES_MIB, PICTURE_PX
from cache.record import Record
from cache.store import Store
from cache.text import byte_size, printable

_COUNTS = {
    "by_method": "method",
    "by_strength": "strength",
    "rejected_by_reason": "rejected as",
}
"""Counts in a store's statistics, and the first words of their rows."""
_COUNTS_SHOWN = 10

_LISTED = 20
_LINE = "{:>9}  {:12}  {:19}  {:>11}  {:>9}  {}"

_CELLS, _MAX_CELLS = 16, 400
_DEFAULT_SHEET = "contact_sheet"


def _stats(options: argparse.Namespace) -> int:
    with Store(options.path, readonly=True) as store:
        stats = store.stats()
        recipes = store.recipes()
    if options.json:
        print_json(stats | {"by_recipe": [_recipe_fields(recipe) for recipe in recipes]})
    else:
        sets = _data_set_rows(stats["by_data_set"])
        rows = [*_size_rows(stats), *_count_rows(stats), *sets, *_recipe_rows(recipes)]
        print_table("", "", rows=rows)
    return 0


def _size_rows(stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "path", stats["path"]
    yield "entries", f"{stats['entries']:,}"
    for name in ("payload", "stored", "file", "saliency"):
        yield name, byte_size(stats[f"{name}_bytes"])
    for name in ("made_last_hour", "evicted", "corrupt"):
        yield name.replace("_", " "), f"{stats[name]:,}"
    yield "claims", f"{stats['claims_live']:,} live, {stats['claims_dead']:,} dead"
    for owner in stats["owners"]:
        yield "owner", f"process {owner['pid']} on {owner['host']}: {owner['claims']:,} claims"
    yield "pins", f"{stats['pins_live']:,} live"


def _count_rows(stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, head in _COUNTS.items():
        yield from _most(head, stats[name])


def _data_set_rows(sets: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, held in sorted(sets.items(), key=lambda named: (-named[1]["entries"], named[0])):
        yield f"data set {name or '(none)'}", f"{held['entries']:,}"
        yield from _most("  source class", held["source_classes"])
        yield from _most("  target class", held["target_classes"])


def _most(head: str, counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    ordered = sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))
    for label, number in ordered[:_COUNTS_SHOWN]:
        yield f"{head} {label or '(none)'}", f"{number:,}"
    if len(ordered) > _COUNTS_SHOWN:
        rest = ordered[_COUNTS_SHOWN:]
        yield f"{head}: {len(rest)} others", f"{sum(number for _, number in rest):,}"


def _recipe_rows(recipes: list[Recipe]) -> Iterator[tuple[str, str]]:
    ordered = sorted(recipes, key=lambda recipe: (-recipe.entries, recipe.id))
    for recipe in ordered[:_COUNTS_SHOWN]:
        fields = ", ".join(
            f"{name}={value}" for name, value in recipe.fields.items() if value is not None
        )
        held = f"{recipe.entries:,} entries, {byte_size(recipe.payload_bytes)}"
        yield f"recipe {recipe.id.hex()[:12]}", f"{held}: {fields}"
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
    if isinstance(found, Unreadable):
        return row | {"problem": found.problem}
    return row | _record_fields(found)


def _record_fields(record: Record) -> dict[str, Any]:
    return {
        "created": record.created,
        "codec": record.codec.name,
        "height": record.height,
        "width": record.width,
        "bytes": len(record.image_bytes),
        "scores": record.scores,
        "classes": record.classes,
        "request": record.request,
    }


def _print_rows(rows: Iterable[dict[str, Any]]) -> None:
    # Line by line: the widths of a table would need all rows first.
    head = ""
    for row in rows:
        if not head:
            head = _LINE.format("position", "key", "created", "size", "bytes", "request")
            sys.stdout.write(f"{head}\n")
        sys.stdout.write(f"{printable(_LINE.format(*_columns(row)))}\n")
    if not head:
        sys.stdout.write("no records\n")


def _columns(row: dict[str, Any]) -> list[str]:
    start = [str(row["position"]), row["key"][:12]]
    if "problem" in row:
        return [*start, "", "", "", row["problem"]]
    shape = f"{row['width']} x {row['height']}"
    request = request_line(row["request"], row["classes"])
    return [*start, local_time(row["created"]), shape, f"{row['bytes']:,}", request]


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    add_filters(parser, limit=_LISTED)
    parser.add_argument(
        "--after",
        type=count,
        metavar="POSITION",
        help="start behind this position of the log (default: end with the newest)",
    )


def _show(options: argparse.Namespace) -> int:
    if options.html is not None:
        return show_page(options)
    target = options.out or Path(f"{options.key or _DEFAULT_SHEET}.png")
    check_free(target, force=options.force)
    names = class_names(options)
    with Store(options.path, readonly=True) as store:
        records = _chosen(store, options)
    sheet = _draw(records, names, options)
    with staged_file(target, force=options.force) as path:
        path.write_bytes(sheet)
    if options.json:
        shown = [{"key": record.key.hex()} | _record_fields(record) for record in records]
        print_json({"image": str(target), "records": shown})
    elif options.key is not None:
        print_table("", "", rows=[*_detail_rows(records[0]), ("image", str(target))])
    else:
        print_table("", "", rows=[("records", str(len(records))), ("image", str(target))])
    return 0


def _chosen(store: Store, options: argparse.Namespace) -> list[Record]:
    if options.key is not None:
        return [_record_named(store, options.key)]
    most = _CELLS if options.limit is None else min(options.limit, _MAX_CELLS)
    found = select(store, replace(selection(options, store), limit=most))
    records = [record for record in found if isinstance(record, Record)]
    if not records:
        raise CacheError(f"there must be a record to show, got none that fits in {store.path}")
    return records


def _record_named(store: Store, prefix: str) -> Record:
    keys = store.find(prefix)
    if len(keys) > 1:
        raise CacheError(
            f"key must be one record's, got {prefix!r} which several start with; give more digits"
        )
    record = store.inspect(keys[0]) if keys else None
    if record is None:
        raise CacheError(f"key must be a record's, got {prefix!r} which none starts with")
    return record


def _draw(records: Sequence[Record], names: ClassNames, options: argparse.Namespace) -> bytes:
    digests = [str(record.request.get("source_digest")) for record in records]
    files = {} if options.sources is None else find_sources(options.sources, digests)
    cells = [
        _cell(record, files.get(digest), names)
        for record, digest in zip(records, digests, strict=True)
    ]
    has_sources = options.sources is not None
    return draw_sheet(cells, f"{len(cells)} of {options.path}", has_sources=has_sources)


def _cell(record: Record, source: Path | None, names: ClassNames) -> Cell:
    classes = [names.caption_in(record, side) for side in ("source", "target")]
    caption = [*caption_of(record.request, *classes), f"key: {record.key.hex()[:12]}"]
    if data_set := record.classes.get("data_set"):
        caption.append(f"data set: {data_set}")
    return Cell(record.image, _source_pixels(source), caption)


def _source_pixels(path: Path | None) -> Pixels | None:
    try:
        return None if path is None else pixels_of(path.read_bytes())
    except (CacheError, OSError):
        return None


def _detail_rows(record: Record) -> list[tuple[str, str]]:
    image = f"{record.width} x {record.height} {record.codec.name}"
    details: dict[str, Any] = {
        "key": record.key.hex(),
        "position": record.position,
        "created": local_time(record.created),
        "size": f"{image}, {byte_size(len(record.image_bytes))}",
        **{name.replace("_", " "): value for name, value in record.classes.items()},
        **{f"request {name}": value for name, value in record.request.items()},
        **{f"score {name}": value for name, value in record.scores.items()},
    }
    return [(name, str(value)) for name, value in details.items()]


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", nargs="?", metavar="KEY", help="one record: its key or the first digits of it"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"PNG to write (default KEY.png, {_DEFAULT_SHEET}.png)",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write one page to browse, filter and compare images in any browser, without a "
        f"server: pictures of {PICTURE_PX} px, about 10 kB each, {MAX_PICTURES_MIB} MiB at most",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument(
        "--sources",
        type=Path,
        metavar="DIR",
        help="folder of the training images; sources are found by the digest of their files",
    )
    add_classes(parser)
    add_filters(parser, limit=None, default=f"{_CELLS}, with --html {MOST}")


STATS = Command(
    "stats",
    "show entries and sizes, by data set, class, method, strength, recipe; rejections; owners",
    """runs/cache                       what it holds, how large it is
runs/cache --json                the same for a program""",
    _stats,
    lambda parser: None,
)
LIST = Command(
    "list",
    "list records in the order of arrival",
    """runs/cache                        the newest 20 records
runs/cache --after 100            20 records from position 101
runs/cache --target-label 3       the newest 20 of class 3""",
    _list,
    _add_list_arguments,
)
SHOW = Command(
    "show",
    "draw one record, a contact sheet of some, or a page to browse thousands",
    """runs/cache                                   contact_sheet.png with 16 records
runs/cache --sources data/birds/train        with the images they were made from
runs/cache d67bf61c --out bird.png           the record whose key starts so
runs/cache --target-label 3 --limit 40       40 of class 3
runs/cache --html cache.html                 a page for a browser, rejected images too
runs/cache --html cache.html --sources data/birds/train     to compare with the sources""",
    _show,
    _add_show_arguments,
)
