"""The one front of `train.py` and of `python -m online_aug.<command>`.

A configuration file, then `key.sub=value`; what goes wrong by a person's doing is one line each on
standard error and exit status 2.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from online_aug.config import Config
from online_aug.config.loading import describe, load_config
from online_aug.errors import UserError

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
