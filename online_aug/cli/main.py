"""`online-aug COMMAND ...`: the table of commands, and the arguments that most of them share.

A command is imported only when it is called. Most take a recipe, which is a YAML file or the name
of one that comes with the package, and `key.sub=value` overrides.
"""

import argparse
import errno
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import NoReturn

from cache import CacheError
from cache.text import nearest_hint
from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config, recipe_names
from online_aug.config.schema import describe, fields, json_schema
from online_aug.cores import share_cores
from online_aug.distributed.identity import LAUNCHER_S, speaks_for_node
from online_aug.errors import RunError, UserError, escaped, one_line
from online_aug.processes import heeded, outlive_terminal

COMMANDS = {
    "train": ("online_aug.cli.train:main", "train a classifier while images are generated for it"),
    "compare": (
        "online_aug.cli.compare:main",
        "train a recipe with and without its synthetic images, over seeds",
    ),
    "finetune": (
        "online_aug.cli.finetune:main",
        "teach the image generator the classes of a data set",
    ),
    "fill": ("online_aug.cli.fill:main", "make the images of a recipe ahead of training"),
    "evaluate": ("online_aug.cli.evaluate:main", "judge a trained classifier on its test split"),
    "predict": (
        "online_aug.cli.predict:main",
        "name the classes of new images with a trained classifier",
    ),
    "report": (
        "online_aug.cli.report:main",
        "write the page of a run, or of several side by side",
    ),
    "study": (
        "online_aug.cli.study:main",
        "answer a question about a recipe with a table and pictures",
    ),
    "publish": (
        "online_aug.cli.publish:main",
        "write or push a trained classifier for others to load",
    ),
    "schema": (
        "online_aug.cli.main:print_schema",
        "print the JSON schema that editors check a recipe with",
    ),
    "cache": (
        "cache.__main__:main",
        "look into a cache of generated images, carry them out and in",
    ),
    "digests": (
        "online_aug.cli.digests:main",
        "verify the digests of real images that are kept beside a cache",
    ),
}
"""The function of every command, as `module:name`, and what the command does."""

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLES = """\
  online-aug compare quickstart --seeds 1
  online-aug train quickstart
  online-aug train quickstart run.seed=1 optim.lr=1e-3
  online-aug train my_recipe.yaml --dry-run
  online-aug cache stats runs/cache"""

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

RECIPE_EXAMPLES = "quickstart\nquickstart run.seed=1 optim.lr=1e-3 'method.strength=[0.7, 0.9]'\n"

COMPLETE_RECIPE, COMPLETE_KEY = "_online_aug_recipe", "_online_aug_key"
"""The shell functions that complete a recipe and a key; see `_completed_words`."""


def main() -> NoReturn:
    """Run the command that the command line names, and exit with its status."""
    share_cores()
    try:
        run_main(run_command)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python ends quietly, if asked twice too


def run_command(argv: Sequence[str]) -> int | None:
    """Run one command, or print the help, the version or a completion script.

    Returns:
        The exit status of the command; None stands for 0.

    Raises:
        UserError: If the command or an option before it is unknown.
    """
    words = [word for word in argv if not word.startswith("--local_rank=")]  # DeepSpeed adds it
    if words and words[0] in COMMANDS:
        module, _, function = COMMANDS[words[0]][0].partition(":")
        command: Callable[[Sequence[str]], int | None] = getattr(import_module(module), function)
        return command(words[1:])
    if words and not words[0].startswith("-"):
        raise UserError(
            f"the first argument must be a command ({', '.join(COMMANDS)}), got {words[0]}"
            f"{_hint(words[0])}; see online-aug --help"
        )
    shell = _parser().parse_args(words or ["--help"]).print_completion
    sys.stdout.write(_completion(shell))
    return 0


def run_main(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main` with the arguments of the process and exit with its status, 0 for None.

    `UserError`, `CacheError` and a full disk become lines on standard error and status 2,
    `RunError` a line and status 1. Ctrl-C is status 130, SIGTERM 143 and SIGHUP 129, all after
    everything on the way out has cleaned up. If all ranks of a node find the same mistake, the
    first says it and the others wait to be ended by their launcher.
    """
    outlive_terminal()
    # Files from elsewhere are data: no library here, or in a process that this one starts, runs
    # what a file of tensors brings, whatever it asks torch for.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with _clean_termination():
            status = main(sys.argv[1:]) or 0
    except (UserError, CacheError, RunError) as error:
        if not speaks_for_node():
            time.sleep(LAUNCHER_S)
        lines = [escaped(line) for line in str(error).split("\n") if line]
        sys.stderr.writelines(f"error: {line}\n" for line in lines)
        status = FAILED if isinstance(error, RunError) else MISUSED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        reason = escaped(one_line(error))
        sys.stderr.write(f"error: a disk must have room, got {reason}; free space\n")
        status = MISUSED
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


@contextmanager
def _clean_termination() -> Iterator[None]:
    watched = [number for number in heeded() if number != signal.SIGINT]
    before = [signal.signal(number, _leave) for number in watched]
    try:
        yield
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _hint(word: str) -> str:
    if word in recipe_names() or word.endswith((".yaml", ".yml")):
        return f"; did you mean online-aug train {word}?"
    return nearest_hint(word, COMMANDS)


@dataclass(frozen=True, kw_only=True)
class Command:
    """The arguments of a command, read but not yet checked against the configuration."""

    recipe: str
    """A path, or the name of a recipe of the package."""
    overrides: tuple[str, ...]
    switches: frozenset[str] = frozenset()
    """The switches that were given, such as `--dry-run`."""
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    """Everything that was given, with the values of a command's own options."""

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
    examples: str = RECIPE_EXAMPLES,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Command:
    """Read the arguments; for `--help` print usage, examples and every key, and exit.

    Args:
        argv: The arguments without the name of the program.
        prog: How the program is called, such as `online-aug train`.
        summary: One sentence on what it does.
        switches: Options without a value that it takes, such as `--dry-run`, and what each does.
        examples: Arguments that `--help` shows, one example a line.
        add_options: Adds options that have a value.

    Raises:
        UserError: If an option is unknown or no recipe is given.
    """
    offered = "".join(f" [{name}]" for name in switches) + (" [options]" if add_options else "")
    shown = "".join(f"  {prog} {line}\n" for line in examples.splitlines())
    parser = Parser(
        prog=prog,
        usage=f"{prog} RECIPE [key.sub=value ...]{offered}",
        description=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, switches)
    if add_options is not None:
        add_options(parser)
    if {"-h", "--help"} & set(argv):
        names = textwrap.fill(", ".join(recipe_names()), 96)
        parser.epilog = (
            f"examples:\n{shown}\nrecipes that come with the package:\n\n{names}\n\n"
            f"keys, with their defaults:\n\n{describe()}"
        )
    for word in argv:
        if word.startswith("--") and "." in word.partition("=")[0]:
            key = word.removeprefix("--").partition("=")[0]
            raise UserError(f"a key must be given as {key}=VALUE, without dashes, got {word}")
    found = parser.parse_intermixed_args(argv)
    return Command(
        recipe=found.recipe,
        overrides=tuple(found.overrides),
        switches=frozenset(found.switches),
        options=found,
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


def _parser() -> Parser:
    listed = "\n".join(f"  {name:<10} {does}" for name, (_, does) in COMMANDS.items())
    parser = Parser(
        prog="online-aug",
        usage="online-aug COMMAND ...",
        description="Train image classifiers with diffusion augmentation made while they train.",
        epilog=(
            f"commands:\n{listed}\n\nonline-aug COMMAND --help says more about one of them\n\n"
            f"examples:\n{EXAMPLES}"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=import_module("online_aug").__version__
    )
    parser.add_argument(
        "--print-completion", choices=SHELLS, help="print a completion script for this shell"
    )
    return parser


def _completion(shell: str) -> str:
    import shtab

    parser = _parser()
    commands = parser.add_subparsers()
    for name, (where, does) in COMMANDS.items():
        module = import_module(where.partition(":")[0])
        if hasattr(module, "build_parser"):
            commands.add_parser(name, help=does, parents=[module.build_parser()], add_help=False)
        elif name != "schema":
            taken = commands.add_parser(name, help=does)
            add_arguments(taken, getattr(module, "SWITCHES", {}))
            getattr(module, "add_options", lambda _: None)(taken)
        else:
            commands.add_parser(name, help=does)
    script: str = shtab.complete(parser, shell, preamble=_completed_words()[shell])
    return f"{script}\n"


def _completed_words() -> dict[str, str]:
    """Return the functions of each shell that list recipes and keys."""
    recipes, keys = " ".join(recipe_names()), " ".join(f"{key}=" for key in fields())
    return {
        "bash": (
            f'{COMPLETE_RECIPE}() {{ compgen -f -W "{recipes}" -- "$1"; }}\n'
            f'{COMPLETE_KEY}() {{ compgen -W "{keys}" -- "$1"; }}'
        ),
        "zsh": (
            f"{COMPLETE_RECIPE}() {{ compadd {recipes}; _files }}\n"
            f"{COMPLETE_KEY}() {{ compadd -S '' {keys} }}"
        ),
        "tcsh": "",
    }
