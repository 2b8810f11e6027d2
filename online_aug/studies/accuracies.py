"""Studies that train a recipe in several ways: by labels, by reuse and by time."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from online_aug.comparison.runs import Outcome, without_synthetic
from online_aug.config import Config
from online_aug.console import duration
from online_aug.errors import UserError
from online_aug.studies import Study
from online_aug.studies.frame import images as frame
from online_aug.studies.frame.answers import (
    Chart,
    Interval,
    Row,
    Value,
    draw_points,
    exact,
    markdown_table,
    mean,
    write_answer,
)
from online_aug.studies.frame.trainings import (
    Outcomes,
    Overrides,
    accuracy_text,
    add_training_options,
    plan_trainings,
    train,
)

GAMMAS = (0.5, 0.8, 1.5, 2.5)
VARIANTS = (1, 2, 5, 10)
_ONLY_TARGET, _ONLY_SOURCE = 1e-6, 1e6
"""Exponents so small or large that the label is hard, but at strength 1, which is the target's."""
_WAIT: Overrides = ("mixing.starvation=wait",)
"""All images of the plan are served, whatever the speed of the generator."""
_UNCAPPED = "mixing.max_times_sampled=null"
ACCURACY = "test accuracy"


def run_labels(config: Config, options: Namespace, folder: Path) -> str:
    """Train with several exponents of the soft label, and with hard labels.

    Raises:
        UserError: If the method has no such label, or a row is no valid configuration.
        RunError: If a training fails.
    """
    if not all(hasattr(settings, "gamma") for settings in config.methods):
        raise UserError(
            "method.name must be one with a soft label between two classes (diff_mix, real_mix) to "
            f"study labels, got {', '.join(settings.name for settings in config.methods)}"
        )
    if not all(gamma > 0 for gamma in options.gammas):
        raise UserError("--gammas must be above 0, got one that is not")
    given = {f"gamma {gamma:g}": gamma for gamma in sorted(set(options.gammas), reverse=True)}
    gammas = {"hard, source": _ONLY_SOURCE, **given, "hard, target": _ONLY_TARGET}
    rows = {name: (f"method.gamma={gamma}", *_WAIT) for name, gamma in gammas.items()}
    outcomes = _trained(config, options, folder, rows)
    found: list[Row] = [{"label": name, **_accuracy(runs)} for name, runs in outcomes.items()]
    said = (
        "All rows see the same images; only the labels differ. A hard label is the source's at "
        "every strength below 1, or the target's.\n"
    )
    text = f"# Labels of {_data(config)}\n\n{said}\n{accuracy_text(outcomes)}"
    write_answer(folder, "labels", text, found)
    points = {
        name: (exact(place, is_share=False), _accuracy(runs)[ACCURACY])
        for place, (name, runs) in enumerate(outcomes.items())
    }
    chart = Chart("Accuracy by label, from the source's to the target's", "", f"{ACCURACY}, %")
    draw_points(folder / "labels.png", chart, points)
    return text


def run_reuse(config: Config, options: Namespace, folder: Path) -> str:
    """Train with several numbers of unique images, served as often as makes equal steps.

    Raises:
        UserError: If the recipe makes no images, or a row is no valid configuration.
        RunError: If a training fails.
    """
    if not config.is_planned:
        raise UserError(
            "method must be one whose images a generator makes, to study reuse, got "
            f"{', '.join(settings.name for settings in config.methods)}"
        )
    if not all(count >= 1 for count in options.variants):
        raise UserError("--variants must be at least 1, got one that is not")
    rows = {
        f"{count} an image": (f"generation.variants_per_image={count}", _UNCAPPED, *_WAIT)
        for count in sorted(set(options.variants))
    }
    outcomes = _trained(config, options, folder, rows)
    found: list[Row] = []
    points = {}
    for name, runs in outcomes.items():
        summaries = [one.summary for one in runs.values()]
        unique = mean([float(s.generated + s.reused) for s in summaries], is_share=False)
        served = mean([s.samples_per_insert for s in summaries], is_share=False)
        row: dict[str, Value] = {
            "variants": name,
            "unique images": unique.value,
            "times served": served,
        }
        found.append(row | _accuracy(runs))
        points[name] = (exact(unique.value, is_share=False), _accuracy(runs)[ACCURACY])
    said = (
        "Equal steps: with fewer unique images each is served more often, as when images are made "
        "once before training; more are what making them while training brings.\n"
    )
    text = "\n".join(
        [f"# Reuse on {_data(config)}\n", said, markdown_table(found), accuracy_text(outcomes)]
    )
    write_answer(folder, "reuse", text, found)
    chart = Chart("Accuracy by unique images", "unique images", f"{ACCURACY}, %")
    draw_points(folder / "reuse.png", chart, points)
    return text


def run_overhead(config: Config, options: Namespace, folder: Path) -> str:
    """Train with nothing added, with CutMix, and with generated images; compare the time added.

    Raises:
        UserError: If the recipe serves no synthetic images, or a row is no valid configuration.
        RunError: If a training fails.
    """
    if not config.mixing.is_synthetic:
        raise UserError("mixing.synthetic_probability must be above 0 to study overhead, got 0")
    real = without_synthetic(config)
    own = f"cache.path={folder / 'caches'}/{{row}}-{{seed}}"
    rows: dict[str, Overrides] = {
        "vanilla": real,
        "CutMix": (*real, "optim.cutmix=1.0", "optim.mixup=0"),
        "online": (own.replace("{row}", "online"), "mixing.starvation=substitute"),
    }
    if config.is_planned:
        rows["all images waited for"] = (own.replace("{row}", "waited"), *_WAIT)
        experiment = frame.open_experiment(config, needs="its overhead")
        plan_trainings(config, options, folder, rows)  # refused before anything is fine-tuned
        frame.make_ready(experiment)
    outcomes = _trained(config, options, folder, rows)
    plain = outcomes["vanilla"]
    found: list[Row] = []
    points = {}
    for name, runs in outcomes.items():
        added = mean([one.summary.wall_s / plain[s].summary.wall_s - 1 for s, one in runs.items()])
        took = sum(one.summary.wall_s for one in runs.values()) / len(runs)
        row: dict[str, Value] = {
            "training": name,
            "time of a run": duration(took),
            "time added": added,
        }
        found.append(row | _accuracy(runs))
        points[name] = (added, _accuracy(runs)[ACCURACY])
    said = (
        "Time of whole launches on this machine, from an empty cache and behind fine-tuning, "
        "relative to vanilla with the same seed. A second run would find the images in the cache.\n"
    )
    text = "\n".join(
        [f"# Overhead on {_data(config)}\n", said, markdown_table(found), accuracy_text(outcomes)]
    )
    write_answer(folder, "overhead", text, found)
    chart = Chart("Accuracy by time added", "time added to vanilla, %", f"{ACCURACY}, %")
    draw_points(folder / "overhead.png", chart, points)
    return text


def _trained(
    config: Config, options: Namespace, folder: Path, rows: Mapping[str, Overrides]
) -> Outcomes:
    return train(plan_trainings(config, options, folder, rows))


def _accuracy(runs: Mapping[int, Outcome]) -> dict[str, Interval]:
    return {ACCURACY: mean([one.shares["test"] for one in runs.values()])}


def _data(config: Config) -> str:
    return Path(config.data.source).name


def _add_label_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--gammas",
        type=frame.listed(float),
        default=GAMMAS,
        metavar="G,G,...",
        help=f"exponents of the soft label; default {', '.join(map(str, GAMMAS))}",
    )
    add_training_options(parser, is_optional=False)


def _add_reuse_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--variants",
        type=frame.listed(int),
        default=VARIANTS,
        metavar="N,N,...",
        help=f"generated images of each source; default {', '.join(map(str, VARIANTS))}",
    )
    add_training_options(parser, is_optional=False)


def _add_overhead_options(parser: ArgumentParser) -> None:
    add_training_options(parser, is_optional=False)


_TIME = (
    "It trains with every row and seed by ordinary launches, below the study's folder; finished "
    "ones are not repeated. Its time is that of a run times rows and seeds, behind fine-tuning: "
    "fewer of them, or run.epochs, make it shorter."
)
LABELS = Study(
    about=(
        "Which label an image between two classes should have: Diff-Mix's soft label with several "
        "exponents (method.gamma) against hard labels of the source's or the target's class, on "
        f"the same images. Needs a recipe of diff_mix or real_mix. {_TIME} Writes labels.md, "
        "labels.csv and labels.png."
    ),
    examples="digits_diff_mix\ndigits_diff_mix --gammas 0.8,2.5 --seeds 5 run.epochs=5",
    add_options=_add_label_options,
    run=run_labels,
)
"""The study of labels."""
REUSE = Study(
    about=(
        "What more unique images bring at equal optimizer steps, each then being served less "
        "often: generation.variants_per_image from 1 to 10, all made before they are served, as "
        "often as it takes (mixing.max_times_sampled is not heeded). "
        f"Needs a recipe with a generator. {_TIME} Writes reuse.md, reuse.csv and reuse.png."
    ),
    examples="quickstart\npocket_birds_sgd_mix --variants 1,4 --seeds 5",
    add_options=_add_reuse_options,
    run=run_reuse,
)
"""The study of reuse."""
OVERHEAD = Study(
    about=(
        "What accuracy costs in time (DiffuseMix's Figure 4): vanilla training, CutMix, images "
        "made while training, and all images waited for, each from an empty cache. Needs a recipe "
        f"with synthetic images. {_TIME} Writes overhead.md, overhead.csv and overhead.png."
    ),
    examples="quickstart\npocket_birds_sgd_mix --seeds 3 run.epochs=10",
    add_options=_add_overhead_options,
    run=run_overhead,
)
"""The study of overhead."""
