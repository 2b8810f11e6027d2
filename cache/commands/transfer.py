"""`export`, `import` and `merge`: from caches to other formats, back, and together."""

import argparse
from pathlib import Path

from cache.commands.options import (
    Command,
    add_classes,
    add_filters,
    classes,
    gib,
    print_json,
    print_table,
    progress,
    selection,
)
from cache.errors import CacheError
from cache.exchange import exporting, importing
from cache.exchange.folder_formats import Source
from cache.exchange.merging import Report, check_merge, merge, new_or_nothing, select
from cache.exchange.rows import read_class_names
from cache.store import Store

_PROBLEMS_SHOWN = 20


def _export(options: argparse.Namespace) -> int:
    exporting.check_export(options.target, options.format, force=options.force)
    names = classes(options)
    with Store(options.path, readonly=True) as store:
        wanted = selection(options, store)
        total = len(store) if wanted.is_all and wanted.limit is None else options.limit
        with progress("exporting", is_quiet=options.json) as tell:
            records = (
                (tell(number, total), record)[1]
                for number, record in enumerate(select(store, wanted))
            )
            report = exporting.export(
                records, options.target, options.format, names, force=options.force
            )
    return _tell(report, options, f"written as {options.format} to {options.target}")


def _import(options: argparse.Namespace) -> int:
    names = None if options.classes is None else read_class_names(options.classes)
    source = Source(root=options.source, classes=names, method=options.method)
    format, images = importing.find(source, options.format)
    with (
        _target(options, options.path) as store,
        new_or_nothing(store),
        progress("importing", is_quiet=options.json) as tell,
    ):
        report = importing.load(images, store, lambda done: tell(done, None))
    return _tell(report, options, f"added to {options.path} from {format}")


def _merge(options: argparse.Namespace) -> int:
    target = _target(options, options.into)
    sources = [Store(path, readonly=True) for path in (options.path, *options.others)]
    check_merge(sources, target)
    total = sum(len(source) for source in sources)
    if not total:
        raise CacheError("there must be a record to merge, got empty caches")
    with new_or_nothing(target), progress("merging", is_quiet=options.json) as tell:
        report = merge(sources, target, lambda done: tell(done, total))
    return _tell(report, options, f"added to {options.into}")


def _target(options: argparse.Namespace, path: Path) -> Store:
    # What was just carried over is not to be evicted for the rest.
    return Store(path, max_gib=options.max_gib, policy=None)


def _tell(report: Report, options: argparse.Namespace, what: str) -> int:
    if options.json:
        print_json(report.to_fields())
    else:
        rows = [(f"{report.done:,}", what)]
        if report.present:
            rows.append((f"{report.present:,}", "were there before"))
        rows += [
            (f"{number:,}", name.replace("_", " "))
            for name, number in report.beside.items()
            if number
        ]
        if report.broken:
            rows.append((f"{report.broken:,}", "left out:"))
        rows += [("", f"{name}: {reason}") for name, reason in report.problems[:_PROBLEMS_SHOWN]]
        if report.broken > _PROBLEMS_SHOWN:
            rows.append(("", f"... and {report.broken - _PROBLEMS_SHOWN:,} more"))
        print_table("", "", rows=rows)
    return 1 if report.broken else 0


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="folder to make; for parquet, a file"
    )
    parser.add_argument(
        "--format", choices=exporting.FORMATS, default="folder", help="(default folder)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    add_classes(parser)
    add_filters(parser, limit=None)


def _add_max_gib(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-gib", type=gib, metavar="G", help="stop where the cache would take more than G GiB"
    )


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FROM", help="folder of images, or a shard")
    parser.add_argument(
        "--format", choices=tuple(importing.FORMATS), help="(default: what it looks like)"
    )
    parser.add_argument(
        "--method", metavar="NAME", help="method to name for images without a request"
    )
    add_classes(parser)
    _add_max_gib(parser)


def _add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("others", nargs="*", type=Path, metavar="PATH", help="more caches")
    parser.add_argument(
        "--into", type=Path, required=True, metavar="CACHE", help="cache to add to, made if missing"
    )
    _add_max_gib(parser)


EXPORT = Command(
    "export",
    "write records in another format: all of them or, on an error, nothing",
    """runs/cache out                              class folders and metadata.csv
runs/cache out --classes data/birds/train   with the names of the classes
runs/cache out --format diff-mix            as Diff-Mix's scripts write
runs/cache out --format webdataset          tar shards
runs/cache out.parquet --format parquet     the metadata, without images""",
    _export,
    _add_export_arguments,
)
IMPORT = Command(
    "import",
    "add images of a folder; exit status 1 if some were left out as broken",
    """runs/cache out                     an export, of any format with images
runs/cache aug_samples/cub/shot-1  what Diff-Mix's scripts wrote
runs/cache result                  what DiffuseMix's script wrote
runs/cache photos --method mine    any class folders""",
    _import,
    _add_import_arguments,
)
MERGE = Command(
    "merge",
    "join caches, one record a key; may be cut short and done again",
    """a b --into c                        all of a, and what b has beside it
b --into a                          add b to a""",
    _merge,
    _add_merge_arguments,
)
