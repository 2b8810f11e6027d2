"""`online-aug compare`: train a recipe and its vanilla twin over seeds; end with one table.

The twin has the same data, classifier, optimizer and number of steps, but no synthetic images.
"""

import argparse
import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from online_aug.cli.main import Command, Parser, add_arguments
from online_aug.config import Config
from online_aug.console import open_console, percent, print_line
from online_aug.distributed.identity import identify
from online_aug.errors import UserError
from online_aug.files import check_folder
from online_aug.reporting.run_directory import REPORT_FILE

if TYPE_CHECKING:
    from online_aug.comparison.runs import Row, Run
    from online_aug.comparison.tables import Rows

# Whatever needs torch is imported in the function that uses it: a mistake is reported before.

SUMMARY = (
    "Train a recipe and its vanilla twin, which has the same data, classifier, optimizer and "
    "number of steps but real images alone, and compare their accuracy on the test split after the "
    "last epoch. Several recipes of one data set and training share the twin and the table. All "
    "runs share cache.path and finetune.path. Finished runs are not repeated: after Ctrl-C the "
    "same command goes on, and a larger --seeds adds runs."
)
EXAMPLES = """\
quickstart --seeds 1
pocket_birds_sgd_mix --seeds 5
my_recipe.yaml --seeds 3 --cuts data.examples_per_class=5
diffda/cub_shot5_diff_mix diffda/cub_shot5_da_fusion --seeds 3
"""
VANILLA, AUGMENTED = "vanilla", "augmented"


def main(argv: Sequence[str]) -> int:
    """Train what is missing, then print and write the table; return the exit status.

    Raises:
        UserError: If something cannot be used, or a folder holds a run of other settings.
        RunError: If a training fails.
        SystemExit: With 128 plus the signal that interrupted one.
    """
    given = build_parser().parse_intermixed_args(argv)
    overrides = tuple(word for word in given.overrides if "=" in word)
    others = [word for word in given.overrides if "=" not in word]
    command, *more = (Command(recipe=name, overrides=overrides) for name in (given.recipe, *others))
    config = command.load_config()
    _check(config, given.seeds)
    from online_aug.comparison.launches import launching
    from online_aug.comparison.runs import plan_runs

    name = os.path.commonprefix([each.config_path.stem for each in (command, *more)])
    folder: Path = given.out or config.run.dir / f"compare-{name.strip('_') or 'recipes'}"
    check_folder(folder, "--out" if given.out else "run.dir")
    rows = rows_of(command, more)
    seeds = range(config.run.seed, config.run.seed + given.seeds)
    runs = plan_runs(rows, seeds, folder, cuts=given.cuts)
    _check_runs(runs)
    with launching() as launches:
        for number, run in enumerate(runs, 1):
            _head(run, f"{number} of {len(runs)}")
            launches.train(run, is_shown=True)
    shown = ["compare", command.recipe, *others, *overrides, f"--seeds {given.seeds}"]
    _report(" ".join([*shown, "--cuts"] if given.cuts else shown), command, runs, folder)
    return 0


def rows_of(command: Command, more: Sequence[Command]) -> dict[str, "Row"]:
    """Return what is trained: the twin and the recipe, or the twin and each of several recipes.

    Raises:
        UserError: If recipes cannot be compared with one twin.
    """
    from online_aug.comparison.runs import Row, twin_differences, without_synthetic

    config = command.load_config()
    twin = Row(command.recipe, (*command.overrides, *without_synthetic(config)))
    if not more:
        return {VANILLA: twin, AUGMENTED: Row(command.recipe, command.overrides)}
    rows = {VANILLA: twin}
    for each in (command, *more):
        _check(each.load_config(), 1)
        own = Row(each.recipe, (*each.overrides, *without_synthetic(each.load_config())))
        if wrong := next(twin_differences(twin, own), None):
            raise UserError(
                f"recipes must have one vanilla twin to be in one table, {each.recipe} differs "
                f"from {command.recipe} in {wrong}"
            )
        rows[each.config_path.stem] = Row(each.recipe, each.overrides)
    if len(rows) <= len(more) + 1:
        raise UserError("recipes must have names of their own to be in one table, got one twice")
    return rows


def build_parser() -> Parser:
    """Return the parser of this command, which shells complete from too."""
    prog = "online-aug compare"
    shown = "".join(f"  {prog} {line}\n" for line in EXAMPLES.splitlines())
    parser = Parser(
        prog=prog,
        usage=f"{prog} RECIPE [RECIPE ...] [key.sub=value ...] [--seeds N] [--cuts] [--out DIR]",
        description=textwrap.fill(SUMMARY, 78),
        epilog=f"examples:\n{shown}\nonline-aug train --help lists recipes and keys",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, {})
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="seeds from run.seed on; default is 3"
    )
    parser.add_argument(
        "--cuts",
        action="store_true",
        help="each seed splits and cuts the data anew (data.seed), which needs images of its own",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of runs and table; default is compare-... in run.dir",
    )
    return parser


def _check(config: Config, seeds: int) -> None:
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    if not config.mixing.is_synthetic:
        raise UserError(
            "mixing.synthetic_probability must be above 0 to compare with vanilla, got 0: both "
            "sides would be the same"
        )
    if config.run.name is not None:
        raise UserError(
            f"run.name must be left out to compare several runs, got {config.run.name}; "
            "--out names their folder"
        )
    if identify().is_launched:
        raise UserError("compare must be started without a launcher: it starts trainings itself")


def _check_runs(runs: Sequence["Run"]) -> None:
    """Refuse folders of other runs, and what `train` would refuse before it starts."""
    from online_aug.cli.train import check

    for run in runs:
        run.check_room()
    unfinished = {run.row: run for run in runs if not run.is_finished}
    for run in unfinished.values():
        check(run.config, identify())


def _head(run: "Run", place: str) -> None:
    done = ""
    if run.is_finished:
        done = f": finished before, test {percent(run.outcome().shares['test'])}"
    print_line(open_console(), f"\n{run.title} ({place}){done}")


def _report(shown: str, command: Command, runs: Sequence["Run"], folder: Path) -> None:
    from online_aug.comparison.tables import as_records, compare, draw, markdown, turned
    from online_aug.files import write_atomically
    from online_aug.reporting.html_report import write_comparison

    rows: Rows = {
        row: {run.seed: run.outcome() for run in runs if run.row == row}
        for row in dict.fromkeys(run.row for run in runs)
    }
    found = compare(rows)
    columns, notes = turned(found) if AUGMENTED in rows else found, _notes(rows)
    compared = command.config_path.stem if AUGMENTED in rows else f"{len(rows) - 1} recipes"
    title = f"{compared} and the vanilla twin on {runs[0].config.data.source}"
    text = f"# {title}\n\n`online-aug {shown}`\n\n"
    write_atomically(folder / "compare.md", f"{text}{markdown(columns)}\n{notes}\n")
    record = {"recipe": command.recipe, "overrides": command.overrides, "rows": as_records(rows)}
    write_atomically(folder / "compare.json", json.dumps(record, indent=2) + "\n")
    console = open_console()
    console.print(f"\n{title}", markup=False, style="bold")
    console.print(draw(columns))
    write_comparison([run.folder for run in runs], folder / REPORT_FILE)
    first = next(run.folder for run in runs if run.row != VANILLA)
    shown_files = [folder / REPORT_FILE, first / REPORT_FILE, first / "gallery.png"]
    shown_files = [path for path in shown_files if path.exists()]
    for line in (*notes.splitlines(), "", "look at:", *shown_files, folder / "compare.md"):
        print_line(console, str(line))


def _notes(rows: "Rows") -> str:
    from online_aug.comparison.tables import optimizer_steps

    seeds = len(rows[VANILLA])
    spread = (
        "One seed: single numbers, which say little; --seeds 5 gives intervals."
        if seeds == 1
        else f"Means over {seeds} seeds with 95 % intervals; differences are paired by seed."
    )
    lacking = [
        f"\nSeed {seed} served no synthetic image{where}: both of its runs trained on real images "
        "alone."
        for row in rows
        for where in ["" if row == AUGMENTED else f" of {row}"]
        for seed, outcome in rows[row].items()
        if row != VANILLA and not outcome.summary.served.synthetic
    ]
    return (
        "Accuracy on the test split after the last epoch; "
        f"{optimizer_steps(rows):,} optimizer steps in each run.\n{spread}{''.join(lacking)}"
    )
