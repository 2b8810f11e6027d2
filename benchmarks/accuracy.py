"""Compare the accuracy of methods on one recipe, over seeds, with equal optimizer steps.

    python -m benchmarks.accuracy --recipe pocket_birds_sgd_mix --seeds 5 \
        --methods vanilla paste sgd_mix [--row NAME KEY=VALUE ...] [key=value ...]

A row is some overrides on the recipe (`--row` may name one of `--methods` among them), then those
for all rows. Each cell is a launch of `online-aug train` with its own `run.seed`; all cells share
the cache and the fine-tuned generator, and with `--fill` all images are made before the training.
The training images are those of `data.seed` 0, so the spread is that of training; with `--cuts`
every seed has few shots of its own. Finished runs are not repeated, so the same command goes on
where it was stopped, and more seeds can be added. `--table` prints what there is.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks._paired import difference, estimate
from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config
from online_aug.diffusion.compatibility import settle
from online_aug.errors import UserError
from online_aug.methods import find_method
from online_aug.reporting.metrics import read_metrics
from online_aug.reporting.run_directory import CONFIG_FILE, MAY_DIFFER

ROOT = Path(__file__).parents[1]
ROWS: dict[str, tuple[str, ...]] = {
    "vanilla": ("mixing.synthetic_probability=0",),
    "cutmix": ("mixing.synthetic_probability=0", "optim.cutmix=1.0"),
    "recipe": (),
    "diff_mix": ("method.name=diff_mix",),
    "sgd_mix": ("method.name=sgd_mix",),
    "paste": ("method.name=paste",),
    "true_masks": ("method.name=paste", "saliency.method=masks"),
}
"""Overrides of each row that has a name."""
REAL = ("run", "data", "mixing", "classifier", "optim")
"""Sections that decide a run without generated images."""
TESTS = {"test": "top1", "worst group": "worst_group"}
"""Columns, and where `summary.json` has them."""
Cells = dict[int, float]
"""A result for each seed that has one."""


@dataclass(frozen=True)
class Run:
    """One cell: a row's launch with one seed."""

    row: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def config(self) -> Config:
        """The configuration of the launch."""
        return settle(load_config(find_recipe(self.recipe), self.overrides))

    @property
    def is_finished(self) -> bool:
        """Whether its summary is there; raise `UserError` if it is one of other settings."""
        if not (self.folder / "summary.json").exists():
            return False
        trained = yaml.safe_load((self.folder / CONFIG_FILE).read_text())
        if others := _differences(trained, self.config):
            raise UserError(
                f"{self.folder} must be free or hold this run, has another {', '.join(others)}"
            )
        return True

    def results(self) -> dict[str, float]:
        """Return accuracies at the last epoch; the test split has selected nothing."""
        summary = json.loads((self.folder / "summary.json").read_text())
        found = {column: summary[key] for column, key in TESTS.items()}
        if (also := self.folder / "also.json").exists():
            found["also"] = json.loads(also.read_text())["top1"]
        return {column: value for column, value in found.items() if value is not None}

    def steps(self) -> int:
        """Return the number of optimizer steps."""
        return read_metrics(self.folder)[-1].step


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, print the table, and return 1 if a launch failed."""
    options = _options(argv)
    rows = {**{name: ROWS[name] for name in options.methods}, **_own_rows(options.row)}
    runs = [_run(options, rows, row, seed) for seed, row in product(range(options.seeds), rows)]
    missing = [] if options.table else [run for run in runs if not run.is_finished]
    for run in {run.row: run for run in missing}.values() if options.fill else ():
        _fill(run)
    with ThreadPoolExecutor(options.parallel) as pool:
        failed = [run for run in pool.map(_launch, missing) if not run.is_finished]
    finished = [run for run in runs if run.is_finished]
    if options.also is not None:
        for run in finished:
            _judge_also(run, options.also)
    sys.stdout.write(table(finished, list(rows)))
    for run in failed:
        sys.stdout.write(f"failed: {run.folder}, see {run.folder}.log\n")
    return 1 if failed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    options = _parser().parse_args(argv)
    # An option with several words takes those after it too.
    options.overrides += [word for word in options.methods if "=" in word]
    options.methods = [word for word in options.methods if "=" not in word]
    if unknown := [name for name in options.methods if name not in ROWS]:
        raise UserError(f"--methods must be some of {', '.join(ROWS)}, got {unknown[0]}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")
    parser.add_argument("--recipe", default="pocket_birds_sgd_mix", help="name or file")
    parser.add_argument("--methods", nargs="+", default=[], help=", ".join(ROWS))
    parser.add_argument("--row", nargs="+", action="append", default=[], help="NAME KEY=VALUE ...")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cuts", action="store_true", help="other training images each seed")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    parser.add_argument("--dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--fill", action="store_true", help="make all images before training")
    parser.add_argument("--also", type=Path, help="image folder whose test split is judged too")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    return parser


def _own_rows(given: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    rows = {}
    for name, *words in given:
        base = [ROWS[word] for word in words if word in ROWS]
        rows[name] = (*(key for keys in base for key in keys), *(w for w in words if w not in ROWS))
    return rows


def _run(
    options: argparse.Namespace, rows: Mapping[str, tuple[str, ...]], row: str, seed: int
) -> Run:
    folder = options.dir.resolve()
    name = f"{row.replace(' ', '_')}-{seed}"
    overrides = (
        *(f"run.dir={folder}", f"run.name={name}", f"run.seed={seed}"),
        *(f"data.seed={seed if options.cuts else 0}", f"cache.path={folder / 'cache'}"),
        *(f"finetune.path={folder / 'finetuned'}", *rows[row], *options.overrides),
    )
    return Run(row, seed, options.recipe, overrides, folder / name)


def _differences(trained: Mapping[str, Any], config: Config) -> list[str]:
    sections = config.model_dump(mode="json")
    decisive = sections if config.mixing.is_synthetic else REAL
    return [
        f"{section}.{key}"
        for section in decisive
        for key, value in _keys(sections[section]).items()
        # A key that is new since then had no effect.
        if _keys(trained.get(section, {})).get(key, value) != value
        and f"{section}.{key}" not in MAY_DIFFER
    ]


def _keys(section: Any) -> dict[str, Any]:
    return section if isinstance(section, dict) else {"list": section}


def _fill(run: Run) -> None:
    config = run.config
    if config.mixing.is_synthetic and any(find_method(m.name).generates for m in config.methods):
        command = [sys.executable, "-m", "online_aug", "fill", run.recipe, *run.overrides]
        subprocess.run(command, check=True)


def _launch(run: Run) -> Run:
    command = [sys.executable, "-m", "online_aug", "train", run.recipe, *run.overrides]
    sys.stderr.write(f"{run.row}, seed {run.seed}\n")
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{run.folder}.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    return run


def _judge_also(run: Run, folder: Path) -> None:
    path = run.folder / "also.json"
    if path.exists():
        return
    command = [sys.executable, "-m", "online_aug", "evaluate", str(run.folder), "--json"]
    judged = subprocess.run(
        [*command, f"data.source={folder}"], stdout=subprocess.PIPE, text=True, check=True
    )
    path.write_text(judged.stdout)


def table(runs: Sequence[Run], rows: Sequence[str]) -> str:
    """Write a row for each method: means with 95 % intervals, and paired differences to the first.

    Raises:
        UserError: If the runs do not have equal numbers of optimizer steps.
    """
    steps = {run.steps() for run in runs}
    if len(steps) > 1:
        raise UserError(f"all runs must have equal optimizer steps, got {sorted(steps)}")
    results = {(run.row, run.seed): run.results() for run in runs}
    columns = list(dict.fromkeys(column for found in results.values() for column in found))
    cells = {
        (row, column): {
            seed: found[column]
            for (name, seed), found in results.items()
            if name == row and column in found
        }
        for row, column in product(rows, columns)
    }
    return "\n".join([*_head(columns, rows[0]), *_body(cells, columns, rows), *map(_steps, steps)])


def _head(columns: Sequence[str], first: str) -> list[str]:
    names = ["method", "seeds", *(f"{column}, %" for column in columns)]
    names += [f"{column} - {first}" for column in columns]
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def _body(
    cells: Mapping[tuple[str, str], Cells], columns: Sequence[str], rows: Sequence[str]
) -> list[str]:
    lines = []
    for row in rows:
        means = [estimate(list(cells[row, column].values())) for column in columns]
        gains = [difference(cells[row, column], cells[rows[0], column]) for column in columns]
        words = [row, str(means[0].seeds) if means else "0", *(mean.text() for mean in means)]
        words += ["" if row == rows[0] else gain.text(signed=True) for gain in gains]
        lines.append("| " + " | ".join(words) + " |")
    return lines


def _steps(count: int) -> str:
    return f"\n{count} optimizer steps in each run\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
