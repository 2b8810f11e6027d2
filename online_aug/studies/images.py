"""Are the images that a cache holds for a recipe faithful to their class, and diverse?"""

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cache import Store
from online_aug.config import Config
from online_aug.console import counted
from online_aug.data.sources import load_splits
from online_aug.diffusion.compatibility import settle
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.generation.clip import ClipFeatures
from online_aug.loader.pool import open_store
from online_aug.planning import View
from online_aug.planning.held import held_of
from online_aug.reporting.image_quality import ImageQuality, judge_class, overall
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame.answers import Row, markdown_table, write_answer
from online_aug.studies.frame.images import add_draw_options

IMAGES = 1000
HEADS = {
    "images": "images",
    "to_real": "to the nearest real",
    "between_real": "between real",
    "between_generated": "between generated",
    "clip_score": "CLIPScore",
    "clip_score_real": "CLIPScore of real",
}


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Judge images of the cache, and write the table.

    Raises:
        UserError: If the images of the recipe are not known yet, or the cache holds none of them.
    """
    if options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    clip = None if options.clip is None else ClipFeatures(options.clip, "--clip")
    classes = _judge(config, options, clip)
    found = {**classes, "mean of classes": overall(classes)}
    rows = [_row(name, quality) for name, quality in found.items()]
    measure = (
        "root mean squares between copies of 32 px, where 1 is black against white"
        if clip is None
        else "1 minus the cosine of CLIP's features"
    )
    text = "\n".join(
        [
            f"# Generated images of {Path(config.data.source).name}\n",
            markdown_table(rows),
            f"Distances of an image to the nearest one of its class, {measure}. Generated images "
            "are faithful if they are about as near to real ones as those are to one another, and "
            "diverse if they are as far from one another.\n",
        ]
    )
    write_answer(folder, "images", text, rows)
    return text


def _row(name: str, quality: ImageQuality) -> Row:
    values = {HEADS[key]: value for key, value in asdict(quality).items() if value is not None}
    return {"class": name} | {
        head: value if isinstance(value, int) else round(value, 4) for head, value in values.items()
    }


def _judge(
    config: Config, options: Namespace, clip: ClipFeatures | None
) -> dict[str, ImageQuality]:
    """Judge, class by class, as many of the plan's images in the cache as are wanted."""
    experiment = _experiment(config)
    train, found = experiment.splits.train, dict[str, ImageQuality]()
    with open_store(config, train).open() as store:
        keys = _chosen(experiment, store, options)
        for label in counted("judging classes", sorted(keys)):
            records = [store.get(key) for key in keys[label]]
            name = train.class_names[label]
            found[name] = judge_class(
                name,
                [train.load(int(index)) for index in (train.labels == label).nonzero()[0]],
                [record.image for record in records if record is not None],
                clip,
            )
    return found


def _experiment(config: Config) -> Experiment:
    if not config.is_planned:
        raise UserError("method must be one whose images a generator makes, to judge its images")
    splits = load_splits(config.data, config.cache.path)
    experiment = Experiment(settle(config), splits, "cpu")
    if not experiment.plan_is_known:
        raise UserError(
            "the recipe's images must be known, but their model, maps or judge are not made yet, "
            "or follow the classifier: make them with online-aug fill"
        )
    return experiment


def _chosen(experiment: Experiment, store: Store, options: Namespace) -> dict[int, list[bytes]]:
    """Return the keys of images in the cache by class, drawn from the plan."""
    plan = experiment.plan
    held = View(plan, np.unique(held_of(store, plan).numbers).tolist())
    if not held:
        raise UserError(
            f"cache.path must hold images of the recipe's plan, {experiment.config.cache.path} "
            f"holds none of {len(plan):,}: make them with online-aug fill"
        )
    chosen = defaultdict(list)
    order = numpy_rng("study images", options.seed).permutation(len(held))
    for number in order[: options.images]:
        chosen[held[number].target_label].append(held[number].key)
    return dict(chosen)


def _add_options(parser: ArgumentParser) -> None:
    add_draw_options(parser, IMAGES)
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="a CLIP model in transformers' format, whose features measure distances and which "
        "scores images against the names of their classes; without one small copies are compared",
    )


STUDY = Study(
    about=(
        "Whether the images that a cache holds for a recipe are faithful to their class, and "
        "diverse: the distance of a generated image to the nearest real one of its class, and to "
        "the nearest other generated one, beside that between real ones. Needs images made by a "
        "run or online-aug fill. Writes images.md and images.csv."
    ),
    examples="quickstart --images 500\nquickstart --clip /models/clip-vit-base-patch32",
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
