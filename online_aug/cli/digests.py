"""`online-aug digests`: verify the digests of real images that are kept beside a cache."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from online_aug.cli.main import Parser
from online_aug.console import amount, terminal_progress
from online_aug.data.shards.verification import shard_indexes, verify_shards
from online_aug.errors import UserError, escaped
from online_aug.file_digests.known import Progress, Verified, indexes, verify

SUMMARY = """\
Read the real images again whose digests are kept beside a cache, and compare.
A run knows an image again by the size, time of change and inode of its file, and
does not read it. A file whose content changed while these stayed (a failing disk,
a copy with its old time) is found here; its digest is taken out, so that the next
run reads it. Shards (tar, Parquet) are verified in the same way by their folder.
Ends with status 1 if there was one."""
EXAMPLES = """\
examples:
  online-aug digests runs/cache
  online-aug digests shards/
  online-aug digests runs/cache --json"""
_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Verify all indexes beside a cache, and say what was found.

    Returns:
        0, or 1 if a digest was wrong.

    Raises:
        UserError: If no digests are kept there, or they cannot be written.
    """
    options = build_parser().parse_args(argv)
    verifiers = dict.fromkeys(indexes(options.path), verify)
    verifiers |= dict.fromkeys(shard_indexes(options.path), verify_shards)
    if not verifiers:
        raise UserError(
            f"the cache must have digests beside it, got {options.path} without: a run or "
            "online-aug fill keeps them"
        )
    found = {path: _verified(path, check) for path, check in verifiers.items()}
    if options.json:
        rows = [one and asdict(one) | {"root": str(one.root)} for one in found.values()]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        sys.stdout.writelines(_said(path, one) for path, one in found.items())
    return int(any(one is not None and one.wrong for one in found.values()))


def build_parser() -> Parser:
    """Return the parser, which shells complete from."""
    parser = Parser(
        prog="online-aug digests",
        description=SUMMARY,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="FOLDER", type=Path, help="the directory of a cache, or of shards"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array instead of lines")
    return parser


def _verified(path: Path, check: Callable[[Path, Progress], Verified | None]) -> Verified | None:
    try:
        with terminal_progress("reading images") as report:
            return check(path, report)
    except OSError as error:
        raise UserError(
            f"digests must be in a folder that can be written, got {path.parent}: {error.strerror}"
        ) from None


def _said(path: Path, found: Verified | None) -> str:
    if found is None:
        return f"{path.name}: broken or of another version, the next run writes it anew\n"
    verdict = "all right" if not found.wrong else f"{len(found.wrong)} wrong, taken out:"
    names = [f"  {escaped(name)}\n" for name in found.wrong[:_SHOWN]]
    more = len(found.wrong) - len(names)
    return (
        f"{escaped(str(found.root))}: {amount(found.known, 'digest')}, {found.changed} of changed "
        f"files, {verdict}\n{''.join(names)}" + (f"  and {more} more\n" if more else "")
    )
