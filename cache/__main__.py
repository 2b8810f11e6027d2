"""`python -m cache`: look into a cache, check it, and carry images out of it and into it."""

import argparse
import os
import sys
from collections.abc import Sequence

from cache.commands.maintain import COMPACT, EVICT, VERIFY
from cache.commands.show import LIST, SHOW, STATS
from cache.commands.terminal import Parser
from cache.commands.transfer import EXPORT, IMPORT, MERGE
from cache.errors import CacheError
from cache.text import printable

COMMANDS = (STATS, VERIFY, LIST, SHOW, EXPORT, IMPORT, MERGE, EVICT, COMPACT)

_STATUS = "exit status: 0 all well, 1 something is broken, 2 bad input and nothing was changed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except CacheError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader left, as `head` does; keep Python from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'output'} cannot be used: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {printable(message)}\n")
    return 2


def build_parser() -> Parser:
    """Build the parser of all subcommands, for `main` and for shell completion."""
    parser = Parser(
        prog="python -m cache",
        description="Look into a cache of generated images, and carry them out and in.",
        epilog=f"python -m cache COMMAND --help has examples\n{_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        examples = "\n".join(
            f"  python -m cache {command.name} {line}" for line in command.examples.splitlines()
        )
        one = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"examples:\n{examples}\n\n{_STATUS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("path", metavar="PATH", help="directory of the cache")
        command.add_arguments(one)
        one.add_argument("--json", action="store_true", help="print JSON instead of a table")
        one.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
