"""Compare mixes of SGD-Mix alone, refined as a whole, and refined around the source's object.

The same mixes are left as they are, refined as a whole (the paper), and refined with the source's
foreground put back after every step (`method.keeps_foreground`).
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.methods import Picture
from online_aug.methods.foreground_mix import ForegroundMix, source_masks
from online_aug.request import GenerationRequest, Keeps
from online_aug.settings import decided
from online_aug.studies import Study
from online_aug.studies.frame import images as frame
from online_aug.studies.frame.answers import (
    Chart,
    Row,
    draw_bars,
    interval_of,
    markdown_table,
    mean,
    share,
    write_answer,
)
from online_aug.studies.frame.judge import Judge, add_judge_options, check_judge, open_judge
from online_aug.studies.frame.sheet import BAD, Cell, draw_sheet
from online_aug.studies.frame.trainings import (
    add_training_options,
    optional_trainings,
    with_accuracy,
)

IMAGES, SHOWN = 60, 10
TRAINED = {
    "mix alone": ("method.name=paste", "mixing.max_times_sampled=null"),
    "refined": ("method.keeps_foreground=false",),
    "refined, source kept": ("method.keeps_foreground=true",),
}
"""Overrides that train with each."""
REFINED: tuple[tuple[Keeps, str], ...] = (("nothing", "refined"), ("foreground", "kept"))
"""What refining leaves alone, and the name of the images."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to refine, with the images that it made."""

    name: str
    images: Sequence[Picture]
    seen: Sequence[int] = ()
    """Classes that the judge saw."""


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Refine the same mixes in all ways, and write table, sheet and chart.

    Raises:
        UserError: If the recipe's method does not refine mixes, or the options do not fit.
        RunError: If the judge could not be trained.
    """
    _, method = frame.open_foregrounds(config, needs="its refinement")
    if not method.generates:
        raise UserError(
            f"method.name must be sgd_mix, whose mixes are refined, to study it, got {method.name}"
        )
    experiment = frame.open_experiment(config, needs="its refinement")
    strengths = _strengths(config, method, options)
    frame.check_images(experiment, options.images)
    check_judge(config, options.judge)
    runs = optional_trainings(config, options, folder, TRAINED)
    frame.make_ready(experiment)
    part = frame.part_named(experiment, method.name)
    drawn = frame.draw_requests(experiment, part, options.images, options.seed).requests
    with frame.image_maker(experiment) as maker:
        arms = [Arm(name="mix alone", images=maker.starts(drawn))]
        for strength in strengths:
            for keeps, name in REFINED:
                title = f"{name} at {strength:g}"
                wanted = [replace(r, strength=strength, keeps=keeps) for r in drawn]
                made = maker.make(wanted, title)
                arms.append(Arm(name=title, images=[one.image for one in made]))
    judge = open_judge(config, options.judge, folder)
    arms = [replace(arm, seen=judge.classes(arm.images).tolist()) for arm in arms]
    masks = source_masks(drawn, part.context, decided(experiment.config.generation.resolution))
    rows = [_row(arm, arms[0].images, masks, drawn) for arm in arms]
    data = Path(config.data.source).name
    text = _text(f"Refinement of {len(drawn)} mixes of {data}", rows, judge)
    text = with_accuracy(text, runs)
    write_answer(folder, "refinement", text, rows)
    bars = {str(row["images"]): interval_of(row, KEPT) for row in rows}
    chart = Chart("Images that still show the source's class", "", "share of images, %")
    draw_bars(folder / "refinement.png", chart, bars)
    sources = [frame.picture_of(experiment, r.source_digest, r.resolution) for r in drawn[:SHOWN]]
    names = experiment.splits.train.class_names
    _draw(folder / "refinement_sheet.png", drawn, sources, arms, names)
    return text


KEPT, INSIDE, OUTSIDE = "shows the source's class", "change inside", "change outside"


def _strengths(config: Config, method: ForegroundMix, options: Namespace) -> tuple[float, ...]:
    given = tuple(options.strengths) or method.settings.possible_strengths  # type: ignore[attr-defined]
    return frame.checked_strengths(given, config.generation)


def _row(
    arm: Arm, mixes: Sequence[Picture], masks: np.ndarray, requests: Sequence[GenerationRequest]
) -> Row:
    changes = [
        np.abs(image.astype(np.float32) - mix).mean(2)
        for image, mix in zip(arm.images, mixes, strict=True)
    ]
    inside = [float(c[m].mean()) for c, m in zip(changes, masks, strict=True) if m.any()]
    outside = [float(c[~m].mean()) for c, m in zip(changes, masks, strict=True) if not m.all()]
    hits = sum(s == r.source_label for s, r in zip(arm.seen, requests, strict=True))
    return {
        "images": arm.name,
        KEPT: share(hits, len(requests)),
        INSIDE: mean(inside, is_share=False),
        OUTSIDE: mean(outside, is_share=False),
    }


def _text(title: str, rows: Sequence[Row], judge: Judge) -> str:
    return "\n".join(
        [
            f"# {title}\n",
            judge.about,
            "Changes are mean differences to the mix in grey levels of 255, inside and outside of "
            "the source's foreground. `kept` is refined with that foreground put back.\n",
            markdown_table(rows),
        ]
    )


def _draw(
    path: Path,
    requests: Sequence[GenerationRequest],
    sources: Sequence[Picture],
    arms: Sequence[Arm],
    names: Sequence[str],
) -> None:
    rows = []
    for place, (request, source) in enumerate(zip(requests, sources, strict=False)):
        row = {"source": Cell(source, names[request.source_label])}
        for arm in arms:
            seen = arm.seen[place]
            is_kept = seen == request.source_label
            cell = Cell(arm.images[place], names[seen])
            row[arm.name] = cell if is_kept else cell._replace(colour=BAD)
        rows.append(row)
    draw_sheet(rows, path, title="What refinement makes of the mixes, and what the judge sees")


def _add_options(parser: ArgumentParser) -> None:
    frame.add_strengths_option(parser, "those of the recipe")
    frame.add_draw_options(parser, IMAGES, "mixes")
    add_training_options(parser, is_optional=True)
    add_judge_options(parser)


STUDY = Study(
    about=(
        "What SGD-Mix's refinement does to a mix. The same mixes are left as they are, refined as "
        "a whole (the paper), and refined with the source's foreground put back after every step "
        "(method.keeps_foreground): which class a judge sees, how much changes inside and outside "
        "of the source's foreground, and a sheet of them. Needs a recipe of sgd_mix. Writes "
        "refinement.md, refinement.csv, refinement.png and refinement_sheet.png. 40 mixes of "
        "pocket birds at three strengths took 23 s of one core, maps and judge being there."
    ),
    examples=(
        "pocket_birds_sgd_mix\n"
        "pocket_birds_sgd_mix --strengths 0.3,0.7 --images 100\n"
        "my_recipe.yaml --judge runs/vanilla/model.safetensors"
    ),
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
