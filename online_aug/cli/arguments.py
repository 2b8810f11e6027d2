"""A recipe and `key.sub=value` overrides: the arguments that most commands share.

A recipe is a YAML file, or the name of one that comes with the package.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config, recipe_names
from online_aug.config.schema import describe, json_schema
from online_aug.errors import UserError

_EXAMPLES = """\
quickstart
quickstart run.seed=1 optim.lr=1e-3 'method.strength=[0.7, 0.9]'
"""

COMPLETE_RECIPE, COMPLETE_KEY = "_online_aug_recipe", "_online_aug_key"
"""The shell functions that complete a recipe and a key; see `main._completion`."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """The arguments of a command, read but not yet checked against the configuration."""

    recipe: str
    """A path, or the name of a recipe of the package."""
    overrides: tuple[str, ...]
    switches: frozenset[str] = frozenset()
    """The switches that were given, such as `--dry-run`."""

    @property
    def config_path(self) -> Path:
        """The file of the recipe; raise `UserError` if there is none."""
        return find_recipe(self.recipe)

    def load_config(self) -> Config:
        """Load and check the configuration; raise `UserError` with one line for each mistake."""
        return load_config(self.config_path, self.overrides)


def parse_command(
    argv: Sequence[str],
    *,
    prog: str,
    summary: str,
    switches: Mapping[str, str] = MappingProxyType({}),
    examples: str = _EXAMPLES,
) -> Command:
    """Read the arguments; for `--help` print usage, examples and every key, and exit.

    Args:
        argv: The arguments without the name of the program.
        prog: How the program is called, such as `online-aug train`.
        summary: One sentence on what it does.
        switches: Options without a value that it takes, such as `--dry-run`, and what each does.
        examples: Arguments that `--help` shows, one example a line.

    Raises:
        UserError: If an option is unknown or no recipe is given.
    """
    offered = "".join(f" [{name}]" for name in switches)
    shown = "".join(f"  {prog} {line}\n" for line in examples.splitlines())
    parser = Parser(
        prog=prog,
        usage=f"{prog} RECIPE [key.sub=value ...]{offered}",
        description=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, switches)
    if {"-h", "--help"} & set(argv):
        names = ", ".join(recipe_names())
        parser.epilog = (
            f"examples:\n{shown}\nrecipes that come with the package:\n\n{names}\n\n"
            f"keys, with their defaults:\n\n{describe()}"
        )
    found = parser.parse_intermixed_args(argv)
    return Command(
        recipe=found.recipe,
        overrides=tuple(found.overrides),
        switches=frozenset(found.switches),
    )


def add_arguments(parser: argparse.ArgumentParser, switches: Mapping[str, str]) -> None:
    """Add the recipe, the overrides and the switches of a command to its parser."""
    recipe = parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of the package"
    )
    overrides = parser.add_argument(
        "overrides",
        metavar="key.sub=value",
        nargs="*",
        default=[],  # without one argparse calls it required when the recipe is missing
        help="replaces a value of the recipe",
    )
    vars(recipe)["complete"] = dict.fromkeys(("bash", "zsh"), COMPLETE_RECIPE) | {"tcsh": "f"}
    vars(overrides)["complete"] = dict.fromkeys(("bash", "zsh"), COMPLETE_KEY)
    for name, effect in switches.items():
        parser.add_argument(name, dest="switches", action="append_const", const=name, help=effect)
    parser.set_defaults(switches=[])
    # The DeepSpeed launcher adds this to the command; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def print_schema(argv: Sequence[str]) -> None:
    """Print the JSON schema of a recipe.

    Raises:
        UserError: If there are arguments.
    """
    parser = Parser(prog="online-aug schema", description="Print the JSON schema of a recipe.")
    parser.parse_args(argv)
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes become a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as one line that names the help."""
        raise UserError(f"{message}; see {self.prog} --help")
