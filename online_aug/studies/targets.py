"""How many candidates does SGD-Mix's choice of a background need?

Of N random images the one becomes the background whose foreground is nearest to the source's. With
more candidates its own object lies more under the source's, fewer mixes are refused, and fewer
different backgrounds are used.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from online_aug.config import Config
from online_aug.console import counted
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.methods.foreground_mix import ForegroundMix
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame import images as frame
from online_aug.studies.frame.answers import (
    Chart,
    Interval,
    Row,
    draw_lines,
    exact,
    interval_of,
    markdown_table,
    mean,
    share,
    write_answer,
)
from online_aug.studies.frame.sheet import BAD, Cell, draw_sheet
from online_aug.studies.frame.trainings import (
    add_training_options,
    optional_trainings,
    with_accuracy,
)
from online_aug.studies.mask_report import REASONS

IMAGES, DRAWS, SHOWN = 200, 5, 10
CANDIDATES = (1, 10, 30, 50)
_SIDE = 64
"""Side of the grid on which masks are compared, px."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One background that was chosen for a source."""

    source: int
    background: int
    """Places in the table of maps."""
    hidden: float
    """Share of the background's own object that lies under the source's."""
    iou: float
    union: float
    refused: str | None


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Choose backgrounds among different numbers of candidates, and write tables and sheet.

    Raises:
        UserError: If the recipe's method cuts out no foregrounds, or has too few images.
    """
    experiment, method = frame.open_foregrounds(config, needs="its targets")
    frame.check_images(experiment, options.images)
    counts = _counts(options.candidates, len(experiment.data.digests) - 1)
    rows_trained = {f"N = {count}": (f"method.candidates=[{count}, {count}]",) for count in counts}
    runs = optional_trainings(config, options, folder, rows_trained)
    frame.make_ready(experiment, generates=False)
    table = frame.foregrounds_of(experiment)
    order = numpy_rng("study targets", options.seed).permutation(len(table))
    sources = sorted(order[: options.images].tolist())
    found = {
        count: _draws(method, table, sources, count, options.seed)
        for count in counted("choosing backgrounds", counts)
    }
    rows = [_row(count, draws) for count, draws in found.items()]
    text = with_accuracy(_text(experiment, found, rows), runs)
    write_answer(folder, "targets", text, rows)
    lines = {
        name: [
            (float(count), interval_of(row, name)) for count, row in zip(found, rows, strict=True)
        ]
        for name in (HIDDEN, "IoU of both", "refused")
    }
    chart = Chart("Backgrounds among N candidates", "candidates N", "share, %")
    draw_lines(folder / "targets.png", chart, lines)
    _draw(experiment, table, found, folder / "targets_sheet.png")
    return text


HIDDEN, DIFFERENT = "background's object under the source's", "different backgrounds"


def _counts(given: Sequence[int], most: int) -> list[int]:
    if given and not all(1 <= count <= most for count in given):
        raise UserError(
            f"--candidates must be at least 1 and at most {most}, the other training images, "
            f"got {', '.join(map(str, given))}"
        )
    return sorted(set(given or (count for count in CANDIDATES if count <= most)))


def _draws(
    method: ForegroundMix, table: SaliencyTable, sources: Sequence[int], count: int, seed: int
) -> list[Draw]:
    settings = method.settings.model_copy(update={"candidates": (count, count)})
    drawing = type(method)(settings)
    draws = []
    for source in sources:
        for number in range(DRAWS):
            rng = numpy_rng("study targets", seed, table.digests[source], number, count)
            background = drawing.draw_background(table, source, rng)
            fault = drawing.fault(table, source, background)
            pair = [table.digests[source], table.digests[background]]
            ours, theirs = table.masks(pair, _SIDE)
            both, either = (ours & theirs).sum(), (ours | theirs).sum()
            draws.append(
                Draw(
                    source=source,
                    background=background,
                    hidden=float(both / max(1, theirs.sum())),
                    iou=float(both / max(1, either)),
                    union=float(either / ours.size),
                    refused=None if fault is None else REASONS[fault],
                )
            )
    return draws


def _row(count: int, draws: Sequence[Draw]) -> Row:
    by_source: dict[int, list[Draw]] = {}
    for draw in draws:
        by_source.setdefault(draw.source, []).append(draw)
    reasons = Counter(draw.refused for draw in draws if draw.refused)

    def average(name: str) -> Interval:
        return mean([float(np.mean([getattr(d, name) for d in ds])) for ds in by_source.values()])

    return {
        "candidates": count,
        HIDDEN: average("hidden"),
        "IoU of both": average("iou"),
        "covered by their union": average("union"),
        "refused": share(sum(reasons.values()), len(draws)),
        **{f"refused: {name}": exact(reasons[name] / len(draws)) for name in REASONS.values()},
        DIFFERENT: len({draw.background for draw in draws}),
    }


def _text(experiment: Experiment, found: dict[int, list[Draw]], rows: Sequence[Row]) -> str:
    first = next(iter(found.values()))
    data, saliency = Path(experiment.config.data.source).name, experiment.config.saliency
    sources = len({draw.source for draw in first})
    least, most = rows[0], rows[-1]
    gain = interval_of(most, HIDDEN).value - interval_of(least, HIDDEN).value
    return "\n".join(
        [
            f"# Backgrounds of {data} among N candidates: {sources} sources, {DRAWS} draws each\n",
            f"Maps by `saliency.method: {saliency.chosen_method}`, cut by "
            f"`saliency.mask: {saliency.chosen_mask}`. Intervals are over sources; refused draws "
            "are within the means.\n",
            markdown_table(rows),
            f"From {least['candidates']} to {most['candidates']} candidates {100 * gain:+.1f} "
            "points more of the background's object lie under the source's.\n",
        ]
    )


def _draw(
    experiment: Experiment, table: SaliencyTable, found: dict[int, list[Draw]], path: Path
) -> None:
    """Draw a sheet: a row for each source, a column with the mix for each number of candidates."""
    names = experiment.splits.train.class_names
    labels = {source.digest: names[source.label] for source in experiment.data.sources}
    rows = []
    for place in range(0, min(SHOWN, len(next(iter(found.values()))) // DRAWS)):
        draws = {count: some[place * DRAWS] for count, some in found.items()}
        source = table.digests[next(iter(draws.values())).source]
        picture = frame.picture_of(experiment, source, 2 * _SIDE)
        row = {"source": Cell(picture, labels[source])}
        for count, draw in draws.items():
            other = table.digests[draw.background]
            masks = table.masks([source, other], 2 * _SIDE)
            background = frame.picture_of(experiment, other, 2 * _SIDE)
            mix = np.where((masks[0] | masks[1])[..., None], picture, background)
            said = f"refused: {draw.refused}" if draw.refused else f"{draw.hidden:.0%} hidden"
            row[f"N = {count}"] = Cell(mix, said, BAD if draw.refused else "#7a8190")
        rows.append(row)
    draw_sheet(rows, path, title="Mixes by the number of candidates")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--candidates",
        type=frame.listed(int),
        default=(),
        metavar="N,N,...",
        help=f"numbers of candidates; default {', '.join(map(str, CANDIDATES))}",
    )
    frame.add_draw_options(parser, IMAGES, "sources")
    add_training_options(parser, is_optional=True)


STUDY = Study(
    about=(
        "How many candidates SGD-Mix needs to find a background (method.candidates, the paper's "
        "N). For some sources a background is chosen among 1, 10, 30 and 50 images: how much of "
        "its own object lies under the source's, how many mixes are refused, and how many "
        "different backgrounds are used. Needs a recipe of sgd_mix or paste and makes no image by "
        "diffusion; only the saliency maps take time, and they stay in the cache for a run; "
        "with those of the spectral residual pocket birds took 11 s of one core. "
        "Writes targets.md, targets.csv, targets.png and targets_sheet.png."
    ),
    examples=(
        "pocket_birds_sgd_mix\n"
        "pocket_birds_sgd_mix saliency.method=spectral_residual --candidates 1,5,50,500\n"
        "my_recipe.yaml --images 500 --seed 1"
    ),
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
