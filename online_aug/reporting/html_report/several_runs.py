"""The page of several runs: recipes side by side, each with its seeds, against a baseline."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from online_aug.comparison.paired import Estimate, difference, estimate
from online_aug.console import duration, percent
from online_aug.errors import UserError
from online_aug.reporting.html_report.charts import Line, line_chart
from online_aug.reporting.html_report.classes import FOLDED
from online_aug.reporting.html_report.one_run import method_of, served_by
from online_aug.reporting.html_report.page import (
    change_bar,
    charts,
    folded,
    page,
    paragraph,
    section,
    table,
)
from online_aug.reporting.html_report.recorded_run import NAMES_A_RUN, RecordedRun
from online_aug.reporting.metrics import EpochMetrics, Summary
from online_aug.reporting.run_directory import MAY_DIFFER
from online_aug.reporting.tables import shares

SEEDS = frozenset({"run.seed", "data.seed"})
"""Keys by which the runs of one recipe differ: the training's, and that of the cut of the data."""
CLASSES = 40
"""Classes up to which the table of changes is shown unfolded."""
EXTREMES = 10
"""Classes with the largest losses and gains that are shown of more."""
_SEED = re.compile(r"[-_.]?seed[-_]?\d+$")
_INTERVAL = "± is the 95 % interval of the mean over seeds (Student's t)"


@dataclass(frozen=True)
class Recipe:
    """Runs that differ by their seed only."""

    name: str
    runs: Sequence[RecordedRun]

    @property
    def is_vanilla(self) -> bool:
        """Whether no synthetic images were served."""
        return self.runs[0].is_vanilla

    @property
    def summaries(self) -> dict[int, Summary]:
        """The summaries of the finished runs by seed."""
        return {run.seed: run.summary for run in self.runs if run.summary is not None}

    def figures(self, figure: Callable[[Summary], float | None]) -> dict[int, float]:
        """Return a figure of each finished run that has it, by seed."""
        found = {seed: figure(summary) for seed, summary in self.summaries.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def several_runs_page(runs: Sequence[RecordedRun]) -> str:
    """Return the page of runs on the same data.

    The baseline is the first recipe without synthetic images, or else the first one.

    Raises:
        UserError: If the runs are of different data sets or classes.
    """
    _check_same_data(runs)
    recipes = group_runs(runs)
    base = next((recipe for recipe in recipes if recipe.is_vanilla), recipes[0])
    others = [recipe for recipe in recipes if recipe is not base]
    return page(
        f"{len(runs)} runs on {runs[0].source}",
        f"{len(recipes)} recipes; the baseline is {base.name} ({method_of(base.runs[0])})",
        [
            section("Results", paragraph(_about(recipes)), _results(recipes, base)),
            section("How the recipes differ", _settings(recipes)),
            section("Curves", paragraph(_about_bands(recipes)), charts(*_curves(recipes))),
            *(_parts(title, recipes, base) for title in ("groups", "training images")),
            *(_changes(recipe, base) for recipe in others),
            section("Every run", _runs(recipes)),
        ],
    )


def group_runs(runs: Sequence[RecordedRun]) -> list[Recipe]:
    """Put runs together that differ by their seeds only, in the order of the first of each."""
    groups = list[list[RecordedRun]]()
    for run in runs:
        fitting = (
            group
            for group in groups
            if _recipe_keys(group[0]) == _recipe_keys(run)
            and run.seed not in {each.seed for each in group}
        )
        group = next(fitting, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    names = [_SEED.sub("", group[0].name) or group[0].name for group in groups]
    return [
        Recipe(name if names.count(name) == 1 else group[0].name, group)
        for name, group in zip(names, groups, strict=True)
    ]


def _recipe_keys(run: RecordedRun) -> dict[str, str]:
    """Return what makes a recipe; a key that an older run does not know has its default."""
    left_out = NAMES_A_RUN | SEEDS | (MAY_DIFFER - {"run.epochs"})
    return {key: value for key, (value, _) in run.changed.items() if key not in left_out}


def _check_same_data(runs: Sequence[RecordedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.source != first.source:
            raise UserError(
                f"runs of one report must be of one data set, {first.folder} is of "
                f"{first.source} and {run.folder} of {run.source}: write two reports"
            )
        both = (first.class_names, run.class_names)
        if all(both) and set(both[0]) != set(both[1]):
            raise UserError(
                f"runs of one report must be of the same classes, {first.folder} has "
                f"{len(both[0])} and {run.folder} {len(both[1])} others: write two reports"
            )


def _about(recipes: Sequence[Recipe]) -> str:
    seeds = max(len(recipe.summaries) for recipe in recipes)
    said = "Accuracies are of the test split after the last epoch, in percent"
    return f"{said}; {_INTERVAL}." if seeds > 1 else f"{said}. One seed says little: run more."


def _results(recipes: Sequence[Recipe], base: Recipe) -> str:
    top1 = base.figures(lambda summary: summary.top1)
    worst = base.figures(lambda summary: summary.worst_group)
    heads = ["recipe", "seeds", "top-1", "minus baseline"]
    heads += ["worst group", "minus baseline"] if worst else []
    heads += ["worst class", "images made", "synthetic", "starved", "a run took"]
    rows = []
    for recipe in recipes:
        own = recipe.figures(lambda summary: summary.top1)
        row = [recipe.name, str(len(recipe.summaries)), estimate([*own.values()]).text()]
        row.append("" if recipe is base else _gain(own, top1).text(signed=True))
        if worst:
            groups = recipe.figures(lambda summary: summary.worst_group)
            row.append(estimate([*groups.values()]).text())
            row.append("" if recipe is base else _gain(groups, worst).text(signed=True))
        rows.append([*row, *_costs(recipe)])
    return table(heads, rows, numbers=range(1, len(heads)))


def _gain(own: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """Return the mean of own minus theirs over common seeds, or of all if they have none."""
    paired = difference(own, theirs)
    if paired.seeds or not own or not theirs:
        return paired
    return Estimate(fmean(own.values()) - fmean(theirs.values()), math.nan, 1)


def _costs(recipe: Recipe) -> list[str]:
    served = [served_by(run) for run in recipe.runs]
    synthetic = fmean(each.synthetic / max(1, each.slots) for each in served)
    starved = fmean(shares(each)["starved"] for each in served)
    made = sum(epoch.generated for run in recipe.runs for epoch in run.epochs)
    worst = recipe.figures(lambda summary: min(summary.per_class.values(), default=None))
    took = [summary.wall_s for summary in recipe.summaries.values()]
    costs = ["-"] * 3 if recipe.is_vanilla else [f"{made:,}", percent(synthetic), percent(starved)]
    return [
        estimate([*worst.values()]).text(),
        *costs,
        duration(fmean(took)) if took else "in training",
    ]


def _settings(recipes: Sequence[Recipe]) -> str:
    first = [recipe.runs[0] for recipe in recipes]
    keys = [_recipe_keys(run) for run in first]
    usual = {key: default for run in first for key, (_, default) in run.changed.items()}
    rows = [[key, *(each.get(key, usual[key]) for each in keys)] for key in dict.fromkeys(usual)]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    drawn = table(["key", *(recipe.name for recipe in recipes)], rows)
    return drawn or paragraph("No key that decides what is computed.")


def _about_bands(recipes: Sequence[Recipe]) -> str:
    has_bands = any(len(recipe.runs) > 1 for recipe in recipes)
    return "Means over seeds; a band goes from the lowest to the highest." if has_bands else ""


def _curves(recipes: Sequence[Recipe]) -> Iterable[str]:
    longest = max(len(run.epochs) for recipe in recipes for run in recipe.runs)
    x = [float(number) for number in range(1, longest + 1)]
    figures: Mapping[str, tuple[Callable[[EpochMetrics], float], bool]] = {
        "Validation top-1": (lambda epoch: epoch.val_top1, True),
        "Training loss": (lambda epoch: epoch.train_loss, False),
        "Synthetic share of the slots": (_synthetic_share, True),
        "Training, images/s": (lambda epoch: epoch.images_per_s, False),
    }
    for title, (figure, is_share) in figures.items():
        lines = [_mean_line(recipe, figure, longest) for recipe in recipes]
        if not any(math.isfinite(value) for line in lines for value in line.values):
            continue  # nothing to validate on
        yield line_chart(title, x, lines, is_share=is_share)


def _synthetic_share(epoch: EpochMetrics) -> float:
    return epoch.served.synthetic / max(1, epoch.served.slots)


def _mean_line(recipe: Recipe, figure: Callable[[EpochMetrics], float], length: int) -> Line:
    by_epoch: list[list[float]] = [[] for _ in range(length)]
    for run in recipe.runs:
        for number, epoch in enumerate(run.epochs):
            if math.isfinite(value := figure(epoch)):
                by_epoch[number].append(value)
    means = [fmean(values) if values else math.nan for values in by_epoch]
    if len(recipe.runs) < 2:
        return Line(recipe.name, means)
    lowest = [min(values, default=math.nan) for values in by_epoch]
    highest = [max(values, default=math.nan) for values in by_epoch]
    return Line(recipe.name, means, lowest, highest)


def _parts(title: str, recipes: Sequence[Recipe], base: Recipe) -> str:
    first = next(iter(base.summaries.values()), None)
    if first is None or title not in first.parts:
        return ""

    def accuracies(recipe: Recipe, part: str) -> dict[int, float]:
        return recipe.figures(lambda summary: summary.parts.get(title, {}).get(part))

    rows = []
    for part in first.parts[title]:
        row = [part]
        for recipe in recipes:
            own = accuracies(recipe, part)
            row.append(estimate([*own.values()]).text())
            if recipe is not base:
                row.append(_gain(own, accuracies(base, part)).text(signed=True))
        rows.append(row)
    heads = [title]
    for recipe in recipes:
        heads += [recipe.name] if recipe is base else [recipe.name, "minus baseline"]
    return section(f"Accuracy by {title}", table(heads, rows, numbers=range(1, len(heads))))


def _changes(recipe: Recipe, base: Recipe) -> str:
    """Return what a recipe changes for each class against the baseline, losses first."""
    first = next(iter(base.summaries.values()), None)
    if first is None or not recipe.summaries:
        return ""
    changes = []
    for name in first.per_class:
        theirs, own = (
            each.figures(lambda summary, name=name: summary.per_class.get(name))  # type: ignore[misc]
            for each in (base, recipe)
        )
        if theirs and own:
            changes.append((_gain(own, theirs), name, theirs, own))
    changes.sort(key=lambda each: (each[0].mean, each[1]))
    largest = max((abs(gain.mean) for gain, *_ in changes), default=0.0)
    rows = [
        [
            name,
            change_bar(gain.mean, largest),
            gain.text(signed=True),
            estimate([*theirs.values()]).text(),
            estimate([*own.values()]).text(),
        ]
        for gain, name, theirs, own in changes
    ]
    heads = ("class", "", "change", base.name, recipe.name)
    lost, won = (sum(sign * gain.mean > 0 for gain, *_ in changes) for sign in (-1, 1))
    said = f"Top-1 in percent, losses first: {lost} classes lose, {won} gain."
    title = f"Classes: {recipe.name} against {base.name}"
    if len(rows) <= CLASSES:
        return section(title, paragraph(said), table(heads, rows, numbers=(2, 3, 4)))
    some = [*rows[:EXTREMES], *rows[-EXTREMES:]]
    whole = ""
    if len(rows) <= FOLDED:
        whole = folded(f"All {len(rows):,} classes", table(heads, rows, numbers=(2, 3, 4)))
    said = f"{said} The {EXTREMES} largest of each:"
    return section(title, paragraph(said), table(heads, some, numbers=(2, 3, 4)), whole)


def _runs(recipes: Sequence[Recipe]) -> str:
    heads = ("run", "seed", "epochs", "top-1", "top-1, best validation", "images made", "took")
    rows = []
    for recipe in recipes:
        for run in recipe.runs:
            made = sum(epoch.generated for epoch in run.epochs)
            ends = ["in training", "-", f"{made:,}", "-"]
            if (end := run.summary) is not None:
                best = end.best_on_validation or "-"
                ends = [percent(end.top1), best, f"{made:,}", duration(end.wall_s)]
            rows.append([run.name, str(run.seed), f"{len(run.epochs)}/{run.length}", *ends])
    return table(heads, rows, numbers=range(1, len(heads)))
