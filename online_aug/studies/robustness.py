"""Does augmentation make a classifier harder to disturb?

Finished runs are judged on the same test images: as they are, with adversarial noise, and with
common corruptions.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from online_aug.config import Config
from online_aug.console import counted
from online_aug.data.image_sets import Subset, ordered_batches
from online_aug.data.sources import load_splits
from online_aug.data.transforms import eval_transform
from online_aug.errors import UserError
from online_aug.reporting.disturbed import CORRUPTIONS, SEVERITIES, Images, fgsm, hits
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame.answers import (
    Chart,
    Interval,
    Row,
    draw_bars,
    interval_of,
    markdown_table,
    over_seeds,
    share,
    write_answer,
)
from online_aug.studies.frame.images import add_draw_options
from online_aug.studies.frame.runs import FinishedRun, add_runs_option, finished_runs
from online_aug.studies.frame.sheet import Cell, draw_sheet

IMAGES, SHOWN = 500, 4
EPSILONS = (1, 2, 4, 8)
"""Largest changes of a pixel by FGSM, grey levels of 255."""


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Judge the runs on disturbed test images, and write table, chart and sheet.

    Raises:
        UserError: If a run is not finished or knows other classes, or there are too few images.
    """
    runs = _runs(config, options)
    images, labels = _test_images(config, options)
    rows = [_row(one, images, labels) for one in counted("judging runs", runs)]
    means = over_seeds(rows, "run")
    data = Path(config.data.source).name
    text = "\n".join(
        [
            f"# Robustness on {len(labels)} test images of {data}\n",
            *([markdown_table(means)] if means else []),
            markdown_table(rows),
            "FGSM changes each pixel by so many grey levels of 255, against the run's own "
            "gradient. A corruption is the mean of three severities; intervals of the same images "
            "are not independent between runs.\n",
        ]
    )
    write_answer(folder, "robustness", text, rows)
    bars = {
        f"{name}: {row['run']}": interval_of(row, name)
        for name in ("clean", "FGSM 4", MEAN)
        for row in means or rows
    }
    chart = Chart("Test images that are recognised", "", "share of images, %")
    draw_bars(folder / "robustness.png", chart, bars)
    _draw(folder / "robustness_sheet.png", images)
    return text


MEAN = "corrupted, mean"


def _runs(config: Config, options: Namespace) -> list[FinishedRun]:
    if not options.runs:
        raise UserError("--runs must name at least one finished run to study robustness, got none")
    runs, names = finished_runs(options.runs), list(load_splits(config.data).test.class_names)
    for one in runs:
        if list(one.class_names) != names:
            raise UserError(f"--runs must know the classes of data.source, {one.folder} does not")
        if one.config.data.image_size != config.data.image_size:
            raise UserError(
                f"--runs must see images of data.image_size {config.data.image_size}, "
                f"{one.folder} sees {one.config.data.image_size}"
            )
    return runs


def _test_images(config: Config, options: Namespace) -> tuple[Images, Int[Tensor, " b"]]:
    test = load_splits(config.data).test
    if options.images < 2:
        raise UserError(f"--images must be at least 2, got {options.images}")
    order = numpy_rng("study robustness", options.seed).permutation(len(test))
    chosen = np.sort(order[: options.images])
    skips = config.data.on_bad_image == "skip"
    batches = list(
        ordered_batches(
            Subset(test, chosen), eval_transform(config.data), 256, skips_bad_images=skips
        )
    )
    places = torch.cat([found for _, found in batches])
    labels = torch.from_numpy(np.asarray(test.labels)[chosen]).long()
    return torch.cat([batch for batch, _ in batches]), labels[places]


def _row(one: FinishedRun, images: Images, labels: Int[Tensor, " b"]) -> Row:
    classifier, total = one.classifier(), len(labels)
    found = {"clean": hits(classifier, images.float(), labels)}
    for epsilon in EPSILONS:
        attacked = fgsm(classifier, images, labels, epsilon)
        found[f"FGSM {epsilon}"] = hits(classifier, attacked, labels)
    shares = {name: share(count, total) for name, count in found.items()}
    for name, disturb in CORRUPTIONS.items():
        right = sum(
            hits(classifier, disturb(images, severity).float(), labels)
            for severity in range(SEVERITIES)
        )
        shares[name] = _mean_share(right, total * SEVERITIES, total)
    middle = float(np.mean([shares[name].value for name in CORRUPTIONS]))
    shares[MEAN] = _mean_share(round(middle * total), total, total)
    return {"run": one.name, **shares}


def _mean_share(right: int, tries: int, images: int) -> Interval:
    """Return a share over several views of each image, with the interval of as many images."""
    found = share(round(right / tries * images), images)
    return found._replace(value=right / tries)


def _draw(path: Path, images: Images) -> None:
    rows = []
    for image in images[:: max(1, len(images) // SHOWN)][:SHOWN]:
        shown = {"clean": image} | {
            f"{name}, {severity + 1}": disturb(image[None], severity)[0]
            for name, disturb in CORRUPTIONS.items()
            for severity in (0, SEVERITIES - 1)
        }
        rows.append(
            {name: Cell(one.permute(1, 2, 0).contiguous().numpy()) for name, one in shown.items()}
        )
    draw_sheet(rows, path, title="Corruptions, weakest and strongest")


def _add_options(parser: ArgumentParser) -> None:
    add_runs_option(parser, "trained with the recipe and, say, without synthetic images")
    add_draw_options(parser, IMAGES, "test images")


STUDY = Study(
    about=(
        "Whether augmentation makes a classifier harder to disturb (DiffuseMix's claim). Finished "
        "runs are judged on the same test images as they are, with adversarial noise (FGSM) and "
        "with six common corruptions of our own at three severities. Needs finished runs of the "
        "recipe's data and image size, such as those of online-aug compare, of which those "
        "of several seeds are averaged too. Writes robustness.md, "
        "robustness.csv, robustness.png and robustness_sheet.png. One run "
        "on 200 digits took 12 s of one core."
    ),
    examples="pocket_birds_sgd_mix --runs runs/vanilla-seed0,runs/sgd_mix-seed0 --images 1000",
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
