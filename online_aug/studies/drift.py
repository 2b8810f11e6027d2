"""At which strength does a generated image stop showing its class?

Some training images are translated at several strengths, each from the same noise. A judge that has
only seen real images tells which class each result shows. The sheet of the images comes first: it
is how one chooses a strength by eye.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config
from online_aug.experiment.experiment import Experiment
from online_aug.files import write_atomically
from online_aug.methods import Part, Picture
from online_aug.methods.strengths import steps_of
from online_aug.request import GenerationRequest
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame import images as frame
from online_aug.studies.frame.answers import (
    Chart,
    Interval,
    Row,
    Value,
    csv_text,
    draw_lines,
    exact,
    markdown_table,
    share,
    write_answer,
)
from online_aug.studies.frame.judge import (
    Verdict,
    add_judge_options,
    check_judge,
    open_judge,
)
from online_aug.studies.frame.sheet import BAD, GOOD, Cell, draw_sheet

IMAGES, SHOWN = 100, 8
STRENGTHS = tuple(n / 10 for n in range(1, 11))
KEPT = 0.9
"""Share of the images showing their class at the start that must still do so at a safe strength."""
START = 0.0
"""Stands for the images that diffusion starts from, in the place of a strength."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A method whose drift is measured."""

    name: str
    experiment: Experiment
    strengths: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The images of a method at one strength, and the classes that the judge saw."""

    subject: Subject
    strength: float
    made: Sequence[frame.Made]
    verdicts: Sequence[Verdict] = ()

    @property
    def judged(self) -> list[tuple[GenerationRequest, Verdict]]:
        """Requests and verdicts of the images that the gate accepted."""
        pairs = zip(self.made, self.verdicts, strict=True)
        return [(one.request, verdict) for one, verdict in pairs if one.rejected is None]

    @property
    def kept(self) -> Interval:
        """Share of images that show the source's class."""
        judged = self.judged
        return share(sum(v.seen == r.source_label for r, v in judged), len(judged))

    @property
    def reached(self) -> Interval:
        """Share of images that show the target's class."""
        judged = self.judged
        return share(sum(v.seen == r.target_label for r, v in judged), len(judged))

    @property
    def crosses(self) -> bool:
        """Whether another class than the source's is asked for."""
        return any(one.request.target_label != one.request.source_label for one in self.made)

    @property
    def label(self) -> float:
        """Weight of the target's class in the method's label, on average."""
        part = frame.part_named(self.subject.experiment, self.subject.name)
        weights = [_target_weight(part, one) for one in self.made]
        return float(np.mean(weights)) if self.strength > START else 0.0


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Draw the sheets, judge the images, and write table and chart.

    Raises:
        UserError: If the recipe or the options do not fit.
        RunError: If the judge could not be trained.
    """
    subjects = _subjects(config, options)
    check_judge(config, options.judge)
    folder.mkdir(parents=True, exist_ok=True)
    results = [result for subject in subjects for result in _made(subject, options, folder)]
    if options.sheet_only:
        return f"{_sheets(results)}\n"
    judge = open_judge(config, options.judge, folder)
    results = [replace(one, verdicts=judge([made.image for made in one.made])) for one in results]
    for subject in subjects:
        _draw([one for one in results if one.subject is subject], folder)
    rows = [_row(result) for result in results]
    text = "\n".join(
        [f"# {_title(results)}\n", judge.about, _sheets(results), "", markdown_table(rows)]
        + [f"{_verdict([one for one in results if one.subject is s])}\n" for s in subjects]
    )
    write_answer(folder, "drift", text, rows)
    write_atomically(folder / "drift_images.csv", csv_text(_image_rows(results)))
    chart = Chart(_title(results), "strength", "images, %")
    draw_lines(folder / "drift.png", chart, _lines(results))
    return text


def _subjects(config: Config, options: Namespace) -> list[Subject]:
    recipe, given, configs = find_recipe(options.recipe), options.overrides, [config]
    if options.methods:
        configs = [load_config(recipe, [*given, f"method.name={m}"]) for m in options.methods]
    experiments = [frame.open_experiment(one, needs="drift") for one in configs]
    for experiment in experiments:
        frame.check_images(experiment, options.images)
    return [
        Subject(name=name, experiment=one, strengths=_strengths(one, name, options.strengths))
        for one in experiments
        for name, method in one.methods.items()
        if method.generates
    ]


def _strengths(experiment: Experiment, name: str, given: Sequence[float]) -> tuple[float, ...]:
    if not hasattr(experiment.methods[name].settings, "strength"):
        return (1.0,)  # it always replays all of the trajectory
    generation = experiment.config.generation
    if not given:
        return tuple(s for s in STRENGTHS if int(steps_of(generation) * s) >= 1)
    return frame.checked_strengths(given, generation)


def _made(subject: Subject, options: Namespace, folder: Path) -> list[Result]:
    """Make the images of all strengths, those of the sheet first, and draw it."""
    frame.make_ready(subject.experiment)
    part = frame.part_named(subject.experiment, subject.name)
    drawn = frame.draw_requests(subject.experiment, part, options.images, options.seed).requests
    results: list[Result] = []
    with frame.image_maker(subject.experiment) as maker:
        for some in (drawn[:SHOWN], drawn[SHOWN:]):
            wanted = [replace(r, strength=s) for s in subject.strengths for r in some]
            title = f"{subject.name}: images of the {'rest' if results else 'sheet'}"
            made = maker.make(wanted, title) if wanted else []
            starts = [
                frame.Made(request=request, image=image, rejected=None)
                for request, image in zip(some, maker.starts(some), strict=True)
            ]
            parts = {START: starts, **{s: [] for s in subject.strengths}}
            for one in made:
                parts[one.request.strength].append(one)
            before = {one.strength: one.made for one in results}
            results = [
                Result(subject=subject, strength=s, made=[*before.get(s, []), *found])
                for s, found in parts.items()
            ]
            if not before:
                _draw(results, folder)
            if options.sheet_only:
                break
    return results


def _sheet_name(name: str) -> str:
    return f"drift-{name}.png"


def _sheets(results: Sequence[Result]) -> str:
    names = dict.fromkeys(_sheet_name(one.subject.name) for one in results)
    return f"Sheets of images: {', '.join(names)}."


def _draw(results: Sequence[Result], folder: Path) -> None:
    """Draw a method's sheet: a row for each source, a column for each strength."""
    subject, first = results[0].subject, results[0].made[:SHOWN]
    names = subject.experiment.splits.train.class_names
    rows = []
    for place, one in enumerate(first):
        request = one.request
        said = dict.fromkeys(names[n] for n in (request.source_label, request.target_label))
        source = frame.picture_of(subject.experiment, request.source_digest, request.resolution)
        asked = subject.experiment.methods[subject.name].caption(request)
        row = {"source": Cell(source, asked or " to ".join(said))}
        rows.append(row | {_head(result): _cell(result, place, names) for result in results})
    title = f"{subject.name} on {Path(subject.experiment.config.data.source).name} by strength"
    draw_sheet(rows, folder / _sheet_name(subject.name), title=title)


def _head(result: Result) -> str:
    return "start" if result.strength == START else f"{result.strength:g}"


def _cell(result: Result, place: int, names: Sequence[str]) -> Cell:
    one = result.made[place]
    if one.rejected is not None:
        return Cell(one.image, f"rejected: {one.rejected}", BAD)
    if not result.verdicts:
        return Cell(one.image)
    seen, request = result.verdicts[place].seen, one.request
    if seen == request.source_label:
        return Cell(one.image, names[seen])
    return Cell(one.image, names[seen], GOOD if seen == request.target_label else BAD)


def _target_weight(part: Part, one: frame.Made) -> float:
    request, image = one.request, one.image

    def source() -> Picture:
        return image  # the label does not depend on it

    rng = numpy_rng("study label", request.variant)
    _, label = part.method.compose(source, image, request, part.context, rng)
    return float(label[request.target_label])


def _title(results: Sequence[Result]) -> str:
    data = Path(results[0].subject.experiment.config.data.source).name
    return f"Drift by strength: {len(results[0].made)} images of {data}"


def _row(result: Result) -> Row:
    kept, reached = result.kept, result.reached
    row: dict[str, Value] = {
        "method": result.subject.name,
        "strength": _head(result),
        "shows the source's class": kept,
    }
    if result.crosses:
        neither = 1 - kept.value - reached.value
        row |= {"shows the target's class": reached, "neither": exact(neither)}
        row |= {"target's weight in the label": exact(result.label)}
    return row | {"rejected by the gate": sum(one.rejected is not None for one in result.made)}


def _lines(results: Sequence[Result]) -> dict[str, list[tuple[float, Interval]]]:
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for one in results:
        name = one.subject.name
        lines.setdefault(f"{name}: source's class", []).append((one.strength, one.kept))
        if one.crosses:
            lines.setdefault(f"{name}: target's class", []).append((one.strength, one.reached))
            weight = (one.strength, Interval(one.label, one.label, one.label))
            lines.setdefault(f"{name}: target's weight in the label", []).append(weight)
    return lines


def _verdict(results: Sequence[Result]) -> str:
    """Say which strengths are safe, and which gamma the shares ask for."""
    name, made = results[0].subject.name, [one for one in results if one.strength > START]
    safe = []
    for one in made:
        if one.kept.value < KEPT * results[0].kept.value:
            break
        safe.append(one.strength)
    at = f"up to strength {safe[-1]:g}" if safe else "at none of these strengths"
    said = f"{name}: {at} the class is seen in at least {KEPT:.0%} as many images as at the start."
    if not made[0].crosses or not hasattr(
        results[0].subject.experiment.methods[name].settings, "gamma"
    ):
        return said
    grid = np.geomspace(0.1, 10, 201)
    strengths = np.array([one.strength for one in made])
    shares = np.array([one.reached.value for one in made])
    errors = [float(((strengths**gamma - shares) ** 2).sum()) for gamma in grid]
    fitting = grid[int(np.argmin(errors))]
    return (
        f"{said} Labels that give the target's class the weight with which it is seen need "
        f"`method.gamma` {fitting:.1f}."
    )


def _image_rows(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for result in results:
        names = result.subject.experiment.splits.train.class_names
        for one, verdict in zip(result.made, result.verdicts, strict=True):
            request = one.request
            rows.append(
                {
                    "method": result.subject.name,
                    "strength": result.strength,
                    "image": request.source_digest,
                    "source": names[request.source_label],
                    "target": names[request.target_label],
                    "seen": names[verdict.seen],
                    "source's probability": float(verdict.probabilities[request.source_label]),
                    "target's probability": float(verdict.probabilities[request.target_label]),
                    "rejected": one.rejected or "",
                }
            )
    return rows


def _add_options(parser: ArgumentParser) -> None:
    frame.add_strengths_option(parser, "0.1, 0.2, ... 1.0")
    frame.add_draw_options(parser, IMAGES)
    parser.add_argument(
        "--methods",
        type=frame.listed(str),
        default=(),
        metavar="NAME,...",
        help="methods in the place of the recipe's",
    )
    parser.add_argument(
        "--sheet-only", action="store_true", help="draw the sheet and stop, without a judge"
    )
    add_judge_options(parser)


STUDY = Study(
    about=(
        "At which strength a generated image stops showing its class. First a sheet of your own "
        "images at several strengths is drawn, which is how one chooses a strength by eye. Then a "
        "judge, a classifier that has only seen real images, says which class each image shows: "
        "the study trains one, or takes --judge. Writes drift-METHOD.png (the sheet), drift.md, "
        "drift.csv, drift_images.csv (each image) and drift.png. Fine-tunes the generator first "
        "if the recipe asks for it. 40 images of pocket birds at ten strengths took 1 min 42 s of "
        "one core, with maps and judge (8 epochs)."
    ),
    examples=(
        "pocket_birds_sgd_mix\n"
        "my_recipe.yaml --sheet-only --strengths 0.3,0.5,0.7,0.9\n"
        "digits_diff_mix --methods diff_mix,diff_aug --images 200\n"
        "my_recipe.yaml --judge runs/vanilla/model.safetensors"
    ),
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
