"""Accuracies that a study needs: an ordinary launch of `online-aug train` for each row and seed.

Finished runs are not repeated, so the same command goes on where it was stopped.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from online_aug.comparison.launches import launching
from online_aug.comparison.runs import Outcome, Row, Run, plan_runs
from online_aug.comparison.tables import compare, markdown, optimizer_steps
from online_aug.config import Config
from online_aug.console import counted
from online_aug.errors import UserError

SEEDS = 2
Overrides = tuple[str, ...]
Outcomes = Mapping[str, Mapping[int, Outcome]]
"""The outcomes of each row, by seed."""


def add_training_options(parser: ArgumentParser, *, is_optional: bool) -> None:
    """Add the options that say whether to train, and over how many seeds.

    Args:
        parser: Gets them.
        is_optional: Whether the study has an answer without training too.
    """
    if is_optional:
        parser.add_argument(
            "--train", action="store_true", help="train with each as well, which takes longer"
        )
    parser.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        metavar="N",
        help=f"training seeds, from run.seed on; default {SEEDS}",
    )


def plan_trainings(
    config: Config, options: Namespace, folder: Path, rows: Mapping[str, Overrides]
) -> list[Run]:
    """Return the runs of some rows, each a recipe's overrides; nothing is written.

    Args:
        config: The recipe with its overrides.
        options: Has the recipe, its overrides and `--seeds`.
        folder: Folder of the study; the runs are below it.
        rows: Further overrides of each row. `{seed}` in one is that of the run.

    Raises:
        UserError: If a row is no valid configuration, or the folder holds runs of other settings.
    """
    if options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    runs: list[Run] = []
    for seed in range(config.run.seed, config.run.seed + options.seeds):
        for title, words in rows.items():
            own = (word.replace("{seed}", str(seed)) for word in words)
            row = Row(options.recipe, (*options.overrides, *own))
            runs += plan_runs({title: row}, [seed], folder / "runs")
    for run in runs:
        run.check_room()
        run.config  # noqa: B018 - refused here if it is none
    return runs


def train(runs: Sequence[Run], title: str = "training") -> Outcomes:
    """Train what is not finished, show the progress, and return what came out of all.

    Raises:
        RunError: If a training fails.
        SystemExit: With 128 plus the signal that interrupted it.
    """
    with launching() as launches:
        for run in counted(title, runs):
            launches.train(run, is_shown=False)
    names = dict.fromkeys(run.row for run in runs)
    return {name: {run.seed: run.outcome() for run in runs if run.row == name} for name in names}


def optional_trainings(
    config: Config, options: Namespace, folder: Path, rows: Mapping[str, Overrides]
) -> list[Run]:
    """Return the runs as `plan_trainings` does, or none without `--train`."""
    return plan_trainings(config, options, folder, rows) if options.train else []


def with_accuracy(text: str, runs: Sequence[Run]) -> str:
    """Train the runs, if there are any, and return an answer with their accuracies behind it."""
    return f"{text}\n{accuracy_text(train(runs))}" if runs else text


def accuracy_text(outcomes: Outcomes) -> str:
    """Return a table of accuracies with paired differences to the first row, and what it means."""
    first = next(iter(outcomes))
    seeds = len(outcomes[first])
    spread = (
        "one seed, so without intervals"
        if seeds == 1
        else f"{seeds} seeds: means with 95 % intervals, differences paired by seed"
    )
    return (
        f"## Accuracy\n\n{markdown(compare(outcomes))}\nOn the test split after the last epoch; "
        f"{spread}; {optimizer_steps(outcomes):,} optimizer steps in each run.\n"
    )
