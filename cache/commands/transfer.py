"""`export`, `import` and `merge`: caches to other formats, back again, and together."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cache.backend.directory import check_readable
from cache.commands.terminal import (
    Command,
    OnProgress,
    add_classes,
    add_filters,
    class_names,
    positive,
    print_json,
    print_table,
    progress,
    selection,
)
from cache.errors import CacheError
from cache.exchange import exporting, importing, urls
from cache.exchange.folder_formats import ImportFolder
from cache.exchange.metadata import read_class_names
from cache.exchange.records import Report, Unreadable, select
from cache.exchange.urls import place
from cache.record import Record
from cache.store import Store

_PROBLEMS_SHOWN = 20


def _export(options: argparse.Namespace) -> int:
    if isinstance(options.target, Path):
        report, shown = _write_export(options, options.target), str(options.target)
    else:
        report = _upload_export(options, options.target)
        shown = urls.without_password(options.target)
    return _print_report(report, options, f"written as {options.format} to {shown}")


def _write_export(options: argparse.Namespace, target: Path) -> Report:
    exporting.check_export(target, options.format, force=options.force)
    names = class_names(options, gamma=options.gamma)
    with Store(options.path, readonly=True) as store:
        wanted = selection(options, store)
        total = len(store) if wanted.is_all and wanted.limit is None else options.limit
        with progress("exporting", is_quiet=options.json) as on_progress:
            records = _counted(select(store, wanted), total, on_progress)
            return exporting.export(records, target, options.format, names, force=options.force)


def _upload_export(options: argparse.Namespace, url: str) -> Report:
    check_readable(Store(options.path, readonly=True).path)  # before anything is asked of a server
    is_file = options.format not in exporting.FOLDERS
    target = urls.open_target(url, is_file=is_file, force=options.force)
    with TemporaryDirectory(prefix="online-aug-") as folder:
        report = _write_export(options, Path(folder) / "export")
        with progress("uploading", is_quiet=options.json) as on_progress:
            urls.upload(target, url, Path(folder) / "export", on_progress)
    return report


def _counted(
    records: Iterable[Record | Unreadable], total: int | None, on_progress: OnProgress
) -> Iterator[Record | Unreadable]:
    for done, record in enumerate(records):
        on_progress(done, total)
        yield record


def _import(options: argparse.Namespace) -> int:
    names = None if options.classes is None else read_class_names(options.classes)
    given = ImportFolder(root=Path(), classes=names, method=options.method, order=options.order)
    if isinstance(options.source, Path):
        source = replace(given, root=options.source)
        return _import_from(source, options)
    with TemporaryDirectory(prefix="online-aug-") as folder:
        with progress("downloading", is_quiet=options.json) as on_progress:
            root = urls.download(options.source, Path(folder), on_progress)
        url = urls.without_password(options.source)
        source = replace(given, root=root, url=url)
        return _import_from(source, options)


def _import_from(source: ImportFolder, options: argparse.Namespace) -> int:
    format, images = importing.find_images(source, options.format)
    with (
        _target(options.path, options) as store,
        importing.removed_if_empty(store),
        progress("importing", is_quiet=options.json) as on_progress,
    ):
        report = importing.import_images(images, store, lambda done: on_progress(done, None))
    return _print_report(report, options, f"added to {options.path} from {format}")


def _merge(options: argparse.Namespace) -> int:
    target = _target(options.into, options)
    sources = [Store(path, readonly=True) for path in (options.path, *options.others)]
    importing.check_merge(sources, target)
    total = sum(len(source) for source in sources)
    if not total:
        raise CacheError("there must be a record to merge, got empty caches")
    with (
        importing.removed_if_empty(target),
        progress("merging", is_quiet=options.json) as on_progress,
    ):
        report = importing.merge(sources, target, lambda done: on_progress(done, total))
    return _print_report(report, options, f"added to {options.into}")


def _target(path: Path, options: argparse.Namespace) -> Store:
    # Without a policy: what was just carried over is not evicted for the rest.
    return Store(path, max_gib=options.max_gib, policy=None)


def _print_report(report: Report, options: argparse.Namespace, what: str) -> int:
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
        "target",
        type=place,
        metavar="OUT",
        help="folder to create; for parquet, a file; or a URL such as s3://BUCKET/NAME",
    )
    parser.add_argument(
        "--format", choices=exporting.FORMATS, default="folder", help="(default folder)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--gamma",
        type=positive,
        metavar="G",
        help="exponent of the soft labels between two classes, Diff-Mix's method.gamma (default: "
        "only images within a class get a soft label)",
    )
    add_classes(parser)
    add_filters(parser, limit=None)


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=place,
        metavar="FROM",
        help="folder of images, or a shard; or a URL such as gs://BUCKET/NAME",
    )
    parser.add_argument(
        "--format", choices=tuple(importing.FORMATS), help="(default: found by the files)"
    )
    parser.add_argument(
        "--method", metavar="NAME", help="method to record for images without a request"
    )
    parser.add_argument(
        "--order",
        type=Path,
        metavar="FILE",
        help="training images, CLASS/FILE a line, that DA-Fusion's aug-INDEX-NUMBER.png or "
        "CLASS-INDEX-NUMBER.png count",
    )
    add_classes(parser)
    _add_max_gib(parser)


def _add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("others", nargs="*", type=Path, metavar="PATH", help="more caches")
    parser.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="CACHE",
        help="cache to add to, created if missing",
    )
    _add_max_gib(parser)


def _add_max_gib(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-gib", type=positive, metavar="G", help="stop before the cache takes more than G GiB"
    )


EXPORT = Command(
    "export",
    "write records in another format: all of them or, on an error, nothing",
    """runs/cache out                              class folders and metadata.jsonl
runs/cache out --data-set birds             of one data set, if it holds several
runs/cache s3://bucket/out                  to a bucket (pip install s3fs; gs:// needs gcsfs)
runs/cache hf://datasets/me/out             to a data set of the Hugging Face Hub
runs/cache out --format diff-mix            as Diff-Mix's scripts write
runs/cache out --format webdataset          tar shards
runs/cache out.parquet --format parquet     the metadata, without images""",
    _export,
    _add_export_arguments,
)
IMPORT = Command(
    "import",
    "add the images of a folder; exit status 1 if some are broken and were left out",
    """runs/cache out                     an export, of any format with images
runs/cache aug_samples/cub/shot-1  the output of Diff-Mix's scripts
runs/cache result                  the output of DiffuseMix's script
runs/cache photos --method mine    any class folders
runs/cache s3://bucket/out         from a bucket""",
    _import,
    _add_import_arguments,
)
MERGE = Command(
    "merge",
    "join caches, one record a key; after an interruption, run it again",
    """a b --into c                        all of a, and what b has beside it
b --into a                          add b to a""",
    _merge,
    _add_merge_arguments,
)
