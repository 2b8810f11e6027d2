"""`show`: one record, or a contact sheet of some."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.codec import Pixels
from cache.commands.arguments import Command, add_classes, add_filters, classes, selection
from cache.commands.looking import fields
from cache.contact_sheet import Cell, draw_sheet, words_of
from cache.errors import CacheError
from cache.exchange.images import pixels_of
from cache.exchange.names import ClassNames
from cache.exchange.sources import find_sources
from cache.exchange.staging import check_free, staged_file
from cache.record import Record
from cache.selection import select
from cache.store import Store
from cache.terminal import moment, print_json, print_table, size

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
