"""The one front of `train.py` and of `python -m online_aug.<command>`.

A configuration file, then `key.sub=value`; what goes wrong by a person's doing is one line each on
standard error and exit status 2.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cache import CacheError
from online_aug.config import Config
from online_aug.config_files import load_config
from online_aug.config_schema import describe
from online_aug.errors import UserError

INTERRUPTED = 130
MISUSED = 2

_EXAMPLES = """\
examples:
  {prog} configs/quickstart.yaml
  {prog} configs/quickstart.yaml run.seed=1 optim.lr=1e-3 'method.strength=[0.7, 0.9]'
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was typed after the name of the program."""

    config_path: Path
    overrides: tuple[str, ...]
    is_dry_run: bool = False
    """Print the plan and do nothing; only where the program offers it."""

    def load_config(self) -> Config:
        """The validated configuration; raises `UserError` with one line for each mistake."""
        return load_config(self.config_path, self.overrides)


def parse_command(
    argv: Sequence[str], *, prog: str, summary: str, offers_dry_run: bool = False
) -> Command:
    """Read the arguments; `--help` prints usage, examples and every key, and exits with status 0.

    Args:
        argv: The arguments without the program's name.
        prog: How the program is called, such as `python train.py`.
        summary: One sentence on what it does.
        offers_dry_run: Take `--dry-run`.

    Raises:
        UserError: If an option is unknown or the configuration file is not named.
    """
    parser = _Parser(
        prog=prog,
        usage=f"{prog} CONFIG.yaml [key.sub=value ...]{' [--dry-run]' if offers_dry_run else ''}",
        description=summary,
        epilog=f"{_EXAMPLES.format(prog=prog)}\nkeys, with their defaults:\n\n{describe()}",
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
    if offers_dry_run:
        parser.add_argument(
            "--dry-run", action="store_true", help="print devices, requests and disk; do nothing"
        )
    # The DeepSpeed launcher adds this to the command; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    found = parser.parse_intermixed_args(argv)
    return Command(
        config_path=found.config_path,
        overrides=tuple(found.overrides),
        is_dry_run=offers_dry_run and found.dry_run,
    )


def run_main(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main` with the arguments and exit with its status, 0 for None.

    `UserError` and `CacheError` become lines on standard error and status 2. Ctrl-C is status 130
    and SIGTERM 143, both after everything on the way out has cleaned up.
    """
    try:
        with _clean_termination():
            status = main(sys.argv[1:]) or 0
    except (UserError, CacheError) as error:
        sys.stderr.writelines(f"error: {line}\n" for line in str(error).splitlines())
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
