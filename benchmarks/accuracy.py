"""Compare the accuracy of methods over seeds, with equal optimizer steps.

    python -m benchmarks.accuracy birds20 --seeds 5
    python -m benchmarks.accuracy birds --methods vanilla paste sgd_mix sgd_mix+cutmix
    python -m benchmarks.accuracy --recipe my.yaml --methods vanilla recipe --row NAME KEY=VALUE ...

A block names data, and takes each method from the recipe of its own for that data (`BLOCKS`,
`ROWS`); `--recipe` takes every row as overrides of one recipe. `NAME+cutmix` adds what another row
without synthetic images has. `--row` may name one of the rows among its words. Further `key=value`
hold for all rows.

Each cell is a launch of `online-aug train` with its own `run.seed`; all cells share the cache and
the fine-tuned generators, and the images of each row are made before it trains, unless `--online`.
The training images are those of `data.seed` 0, so the spread is that of training; with `--cuts`
every seed has few shots of its own. Finished runs are not repeated: after Ctrl-C the same command
goes on, and more seeds can be added. `--table` prints what there is.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from online_aug.cli.main import run_main
from online_aug.comparison.launches import Launches, launching
from online_aug.comparison.runs import Outcome, Row, Run, plan_runs, without_synthetic
from online_aug.comparison.tables import compare, markdown, optimizer_steps
from online_aug.config.loading import find_recipe, load_config
from online_aug.documents import read_object
from online_aug.errors import UserError


@dataclass(frozen=True)
class Block:
    """Data to compare methods on."""

    recipes: Mapping[str, str]
    """The recipe of each method."""
    overrides: tuple[str, ...]
    """What makes the data of the recipes those of the block."""
    foregrounds: tuple[str, ...] = ()
    """What `sgd_mix` and `paste` need beside it."""


DIGITS = {
    **dict.fromkeys(("sgd_mix", "paste"), "digits_sgd_mix"),
    **{name: f"digits_{name}" for name in ("diff_mix", "diff_aug", "diff_gen", "diffusemix")},
    **{name: f"digits_{name}" for name in ("da_fusion", "real_guidance", "real_mix")},
}
BIRDS = {name: f"pocket_birds_{name}" for name in DIGITS} | {"diff_mix": "pocket_birds"}
BLOCKS = {
    "digits5": Block(
        DIGITS,
        ("data.examples_per_class=5", "data.epoch_repeats=40"),
        ("method.candidates=[20,30]",),
    ),
    "digits10": Block(DIGITS, ("data.examples_per_class=10", "data.epoch_repeats=20")),
    "digits20": Block(DIGITS, ("data.examples_per_class=20", "data.epoch_repeats=10")),
    "birds5": Block(BIRDS, ("data.examples_per_class=5", "data.epoch_repeats=12")),
    "birds20": Block(BIRDS, ("data.examples_per_class=20", "data.epoch_repeats=3")),
    "birds": Block(BIRDS, ()),
    "birds_tail": Block(
        BIRDS, ("data.imbalance_factor=0.1", "data.many_few=[30,15]", "data.epoch_repeats=2")
    ),
    "digits_tail": Block(
        DIGITS,
        (
            *("data.examples_per_class=null", "data.imbalance_factor=0.02"),
            *("data.many_few=[60,20]", "data.epoch_repeats=2", "run.epochs=30"),
        ),
    ),
}
"""Data by name; but for the tails all of birds have 1,350 optimizer steps, all of digits 400."""


@dataclass(frozen=True)
class Kind:
    """A row before it is known on which data."""

    method: str | None = None
    """The method whose recipe it takes; None takes that of SGD-Mix, or the one of `--recipe`."""
    overrides: tuple[str, ...] = ()
    is_vanilla: bool = False
    """Whether it trains on real images alone."""


PASTED = ("mixing.max_times_sampled=null",)
"""A limit for generated images, which pasted ones refuse."""
ROWS = {
    "vanilla": Kind(is_vanilla=True),
    "randaugment": Kind(None, ("data.auto_augment=rand-m9-mstd0.5-inc1",), is_vanilla=True),
    "mixup": Kind(None, ("optim.mixup=0.8",), is_vanilla=True),
    "cutmix": Kind(None, ("optim.cutmix=1.0",), is_vanilla=True),
    "balanced_softmax": Kind(None, ("optim.loss=balanced_softmax",), is_vanilla=True),
    "ldam": Kind(None, ("optim.loss=ldam",), is_vanilla=True),
    "drw": Kind(None, ("optim.reweight_after=24",), is_vanilla=True),
    "cmo": Kind(None, ("optim.cmo=1", "optim.mix_probability=0.5"), is_vanilla=True),
    "recipe": Kind(),
    "paste": Kind("paste", PASTED),
    "true_masks": Kind("paste", (*PASTED, "saliency.method=masks")),
    "diffusemix": Kind("diffusemix"),
    "real_guidance": Kind("real_guidance"),
    "real_mix": Kind("real_mix"),
    "da_fusion": Kind("da_fusion"),
    "diff_aug": Kind("diff_aug"),
    "diff_gen": Kind("diff_gen"),
    "diff_mix": Kind("diff_mix"),
    "sgd_mix": Kind("sgd_mix"),
}
"""What each row is, by its name; `paste` is SGD-Mix without its refinement, `drw` re-weights the
last of 30 epochs, a fifth as published."""
TAIL = ("balanced_softmax", "ldam", "drw", "cmo")
USUAL = [name for name in ROWS if name not in ("recipe", "true_masks", "real_mix", *TAIL)]
"""The rows of a block if none is named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, print the table, and return 1 if a launch failed."""
    options = _options(argv)
    rows = {name: _row(options, kind) for name, kind in _kinds(options).items()}
    folder = options.dir.resolve()
    shared = (f"cache.path={folder / 'cache'}", f"finetune.path={folder / 'finetuned'}")
    rows = {name: Row(row.recipe, (*shared, *row.overrides)) for name, row in rows.items()}
    runs = plan_runs(rows, range(options.seeds), folder, cuts=options.cuts)
    for run in runs:
        run.check_room()
    missing = [] if options.table else [run for run in runs if not run.is_finished]
    with launching() as launches:
        failed = list(_train(options, missing, launches))
    finished = {run: run.outcome() for run in runs if run.is_finished}
    if options.also is not None:
        finished = {run: _judged(run, found, options.also) for run, found in finished.items()}
    sys.stdout.write(table(finished, list(rows)))
    for run in failed:
        sys.stdout.write(f"failed: {run.title}, see {run.log}\n")
    return launches.exit_status or bool(failed)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    options = _parser().parse_intermixed_args(argv)
    # An option with several words takes those after it too.
    options.overrides += [word for word in options.methods if "=" in word]
    options.methods = [word for word in options.methods if "=" not in word]
    options.block = next((word for word in options.overrides if "=" not in word), None)
    options.overrides = [word for word in options.overrides if word != options.block]
    if (options.block is None) == (options.recipe is None):
        raise UserError(f"either a block ({', '.join(BLOCKS)}) or --recipe must be given")
    if options.block is not None and options.block not in BLOCKS:
        raise UserError(f"the block must be one of {', '.join(BLOCKS)}, got {options.block}")
    named = [part for name in options.methods for part in name.split("+")]
    if unknown := [name for name in named if name not in ROWS]:
        raise UserError(f"--methods must be some of {', '.join(ROWS)}, got {unknown[0]}")
    if not options.methods and not options.row and options.block:
        options.methods = USUAL
    options.dir = options.dir or Path("runs/accuracy") / (
        options.block or Path(options.recipe).stem
    )
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="BLOCK or key=value", help=", ".join(BLOCKS)
    )
    parser.add_argument("--recipe", help="name or file, instead of a block")
    parser.add_argument("--methods", nargs="+", default=[], help=", ".join(ROWS))
    parser.add_argument("--row", nargs="+", action="append", default=[], help="NAME KEY=VALUE ...")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cuts", action="store_true", help="other training images each seed")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    parser.add_argument("--dir", type=Path, help="default is runs/accuracy/BLOCK")
    parser.add_argument("--online", action="store_true", help="make images while training")
    parser.add_argument("--also", type=Path, help="image folder whose test split is judged too")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    return parser


def _kinds(options: argparse.Namespace) -> dict[str, Kind]:
    found = {name: _joined([name]) for name in options.methods}
    for name, *words in options.row:
        kind = _joined([word for word in words if "=" not in word])
        keys = tuple(word for word in words if "=" in word)
        found[name] = replace(kind, overrides=(*kind.overrides, *keys))
    return found


def _joined(names: Sequence[str]) -> Kind:
    """Return one kind out of several; the first that has synthetic images names the method."""
    kinds = [ROWS[part] for name in names for part in name.split("+")]
    synthetic = [kind for kind in kinds if not kind.is_vanilla]
    return Kind(
        synthetic[0].method if synthetic else None,
        tuple(key for kind in kinds for key in kind.overrides),
        is_vanilla=bool(kinds) and not synthetic,
    )


def _row(options: argparse.Namespace, kind: Kind) -> Row:
    """Return recipe and overrides of a row on the data that the options name."""
    if options.block is not None:
        block = BLOCKS[options.block]
        method = kind.method or "sgd_mix"
        named = ("method.name=paste",) if method == "paste" else ()
        needed = block.foregrounds if method in ("sgd_mix", "paste") else ()
        recipe, overrides = block.recipes[method], (*named, *block.overrides, *needed)
    else:
        recipe = options.recipe
        overrides = (f"method.name={kind.method}",) if kind.method is not None else ()
    overrides = (*overrides, *options.overrides, *kind.overrides)
    if kind.is_vanilla:
        overrides += without_synthetic(load_config(find_recipe(recipe), overrides))
    return Row(recipe, overrides)


def _train(options: argparse.Namespace, runs: Sequence[Run], launches: Launches) -> Iterator[Run]:
    """Make the images and train; yield the runs that failed."""
    if not options.online:
        for run in {(run.row, run.config.data.seed): run for run in runs}.values():
            config = run.config
            if config.is_planned and not config.plans_follow_classifier:
                sys.stderr.write(f"filling: {run.title}\n")
                if launches.run("fill", run, is_shown=False) and not launches.exit_status:
                    raise UserError(f"the images of {run.title} must be made first, see {run.log}")

    def launch(numbered: tuple[int, Run]) -> tuple[Run, int]:
        number, run = numbered
        sys.stderr.write(f"{run.title} ({number} of {len(runs)})\n")
        return run, launches.run("train", run, is_shown=False)

    with ThreadPoolExecutor(options.parallel) as pool:
        for run, status in pool.map(launch, enumerate(runs, 1)):
            if status and not launches.exit_status:
                yield run


def _judged(run: Run, outcome: Outcome, folder: Path) -> Outcome:
    """Add the accuracy on another test split, which is found once a run."""
    path = run.folder / "also.json"
    if not path.exists():
        command = [sys.executable, "-m", "online_aug", "evaluate", str(run.folder), "--json"]
        judged = subprocess.run(
            [*command, f"data.source={folder}"], stdout=subprocess.PIPE, text=True, check=True
        )
        path.write_text(judged.stdout)
    return replace(outcome, shares={**outcome.shares, "also": read_object(path)["top1"]})


def table(finished: Mapping[Run, Outcome], names: Sequence[str]) -> str:
    """Write a line for each row, and the number of optimizer steps below.

    Raises:
        UserError: If the runs do not have equal numbers of optimizer steps.
    """
    rows = {
        name: {run.seed: outcome for run, outcome in finished.items() if run.row == name}
        for name in names
    }
    steps = optimizer_steps(rows)
    return markdown(compare(rows)) + (f"\n{steps:,} optimizer steps in each run\n" if steps else "")


if __name__ == "__main__":
    run_main(main)
