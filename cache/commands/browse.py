"""`show --html`: a page with many images of a cache, to be browsed without a server."""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cache.commands.terminal import (
    OnProgress,
    class_names,
    print_json,
    print_table,
    progress,
    selection,
)
from cache.errors import CacheError
from cache.exchange.exporting import check_free, staged_file
from cache.exchange.records import Selection, Unreadable, select
from cache.html_page.entries import MAX_PICTURES_MIB, Entries, accepted_rows, rejected_rows
from cache.html_page.page import write_page
from cache.record import Record
from cache.rejection import Rejection
from cache.store import Store
from cache.text import byte_size

MOST = 5000
"""Images of a page, unless the user asks for another number."""


def show_page(options: argparse.Namespace) -> int:
    """Write the page that the options ask for, and say what is in it."""
    target: Path = options.html
    if options.key is not None or options.out is not None:
        raise CacheError("--html must stand without KEY and --out: it shows many images")
    check_free(target, force=options.force)
    if options.sources is not None and not options.sources.is_dir():
        raise CacheError(f"sources must be a folder, got {options.sources}")
    entries, about = _collect(options)
    with staged_file(target, force=options.force) as path:
        write_page(path, f"Images of {options.path}", about, entries)
    _report(entries, target, is_json=options.json)
    return 0


def _collect(options: argparse.Namespace) -> tuple[Entries, str]:
    names, entries = class_names(options), Entries()
    most = MOST if options.limit is None else options.limit
    share = 1.0 if options.sources is None else 0.5  # leave room for the sources' pictures
    with (
        Store(options.path, readonly=True) as store,
        progress("drawing", is_quiet=options.json) as on_progress,
    ):
        wanted = replace(selection(options, store), limit=most)
        records = _counted(select(store, wanted), min(most, len(store)), on_progress)
        entries.add(accepted_rows(records, names), share=share)
        rejections = _rejections(store, wanted, most)
        entries.add(rejected_rows(rejections, names, entries.rows), share=share)
        about = _about(store, entries)
    if not entries.rows:
        raise CacheError(f"there must be an image to show, got none that fits in {options.path}")
    if options.sources is not None:
        with progress("looking for sources", is_quiet=options.json) as on_progress:
            entries.add_sources(options.sources, on_progress)
    return entries, about


def _counted(
    records: Iterable[Record | Unreadable], total: int, on_progress: OnProgress
) -> Iterator[Record | Unreadable]:
    for done, record in enumerate(records):
        on_progress(done, total)
        yield record


def _rejections(store: Store, wanted: Selection, most: int) -> dict[bytes, Rejection]:
    if wanted.data_set is not None and len(store.stats()["by_data_set"]) > 1:
        return {}  # a rejection does not say of which data set it is
    anywhere = replace(wanted, data_set=None)
    found = {
        key: rejection
        for key, rejection in store.rejections().items()
        if anywhere.matches(rejection.request, {})
    }
    kept_first = sorted(found, key=lambda key: found[key].picture is None)
    return {key: found[key] for key in kept_first[:most]}


def _about(store: Store, entries: Entries) -> str:
    stats, shown = store.stats(), len(entries.rows)
    rejected = sum(row["status"] == "rejected" for row in entries.rows)
    parts = (
        (shown - rejected, stats["entries"], "images"),
        (rejected, stats["rejected"], "rejections"),
    )
    counted = ", ".join(f"{part:,} of {held:,} {name}" for part, held, name in parts if held)
    cut = (
        f"; it ends here, since pictures may take {MAX_PICTURES_MIB} MiB" if entries.is_cut else ""
    )
    return f"{counted}, written {time.strftime('%Y-%m-%d %H:%M')}{cut}."


def _report(entries: Entries, target: Path, *, is_json: bool) -> None:
    size = target.stat().st_size
    rejected = sum(row["status"] == "rejected" for row in entries.rows)
    counts = {
        "images": len(entries.rows) - rejected,
        "rejected": rejected,
        "sources": len(entries.sources),
    }
    if is_json:
        print_json({"page": str(target), **counts, "bytes": size, "is_cut": entries.is_cut})
        return
    rows = [(name, f"{number:,}") for name, number in counts.items()]
    if entries.is_cut:
        rows.append(("left out", f"the rest: pictures may take {MAX_PICTURES_MIB} MiB"))
    print_table("", "", rows=[*rows, ("page", f"{target}, {byte_size(size)}")])
