"""The one front of `train.py` and of `python -m online_aug.<command>`.

A configuration file, then `key.sub=value`; what goes wrong by a person's doing is one line each on
standard error and exit status 2.
"""

import argparse
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import NoReturn

from cache import CacheError
from online_aug.config import Config
from online_aug.config_files import load_config
from online_aug.config_schema import describe
from online_aug.errors import RunError, UserError, one_line

FAILED = 1
INTERRUPTED = 130
MISUSED = 2
LAUNCHER_S = 5.0
"""Within this time a launcher ends the ranks beside one that failed."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_EXAMPLES = """\
configs/quickstart.yaml
configs/quickstart.yaml run.seed=1 optim.lr=1e-3 'method.strength=[0.7, 0.9]'
"""
DRY_RUN = {"--dry-run": "print devices, requests and disk; do nothing"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was typed after the name of the program."""

    config_path: Path
    overrides: tuple[str, ...]
    switches: frozenset[str] = frozenset()
    """Those that were typed, such as `--dry-run`, of the ones the program offers."""

    def load_config(self) -> Config:
        """The validated configuration; raises `UserError` with one line for each mistake."""
        return load_config(self.config_path, self.overrides)


def parse_command(
    argv: Sequence[str],
    *,
    prog: str,
    summary: str,
    switches: Mapping[str, str] = MappingProxyType({}),
    examples: str = _EXAMPLES,
) -> Command:
    """Read the arguments; `--help` prints usage, examples and every key, and exits with status 0.

    Args:
        argv: The arguments without the program's name.
        prog: How the program is called, such as `python train.py`.
        summary: One sentence on what it does.
        switches: Options without a value that it takes, such as `--dry-run`, and what each does.
        examples: Arguments for `--help` to show, a line each.

    Raises:
        UserError: If an option is unknown or the configuration file is not named.
    """
    offered = "".join(f" [{name}]" for name in switches)
    shown = "".join(f"  {prog} {line}\n" for line in examples.splitlines())
    parser = _Parser(
        prog=prog,
        usage=f"{prog} CONFIG.yaml [key.sub=value ...]{offered}",
        description=summary,
        epilog=f"examples:\n{shown}\nkeys, with their defaults:\n\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config_path", metavar="CONFIG.yaml", type=Path, help="what to run")
    parser.add_argument(
        "overrides",
        metavar="key.sub=value",
        nargs="*",
        default=[],  # without one argparse calls it required when CONFIG.yaml is missing
        help="replaces a value of the file",
    )
    for name, effect in switches.items():
        parser.add_argument(name, dest="switches", action="append_const", const=name, help=effect)
    parser.set_defaults(switches=[])
    # The DeepSpeed launcher adds this to the command; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    found = parser.parse_intermixed_args(argv)
    return Command(
        config_path=found.config_path,
        overrides=tuple(found.overrides),
        switches=frozenset(found.switches),
    )


def run_main(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main` with the arguments and exit with its status, 0 for None.

    `UserError` and `CacheError` become lines on standard error and status 2, as a full disk does,
    `RunError` status 1.
    Ctrl-C is status 130 and SIGTERM 143, both after everything on the way out has cleaned up. Of
    the ranks of a node the first says what all of them found; the others wait to be ended.
    """
    try:
        with _clean_termination():
            status = main(sys.argv[1:]) or 0
    except (UserError, CacheError, RunError) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(LAUNCHER_S)
        sys.stderr.writelines(f"error: {line}\n" for line in str(error).splitlines())
        status = FAILED if isinstance(error, RunError) else MISUSED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        sys.stderr.write(f"error: a disk must have room, got {one_line(error)}; free space\n")
        status = MISUSED
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


@contextmanager
def _clean_termination() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
