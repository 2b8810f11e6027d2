"""Are the features of a run of use for other classes?

The backbone of each finished run is frozen, and a linear head is trained on another data set.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from online_aug.classifier.model import build_classifier, input_statistics
from online_aug.config import Config
from online_aug.console import counted
from online_aug.data.image_sets import ImageSet, Subset, ordered_batches
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.data.transforms import eval_transform, normalise
from online_aug.errors import UserError
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame.answers import (
    Chart,
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

IMAGES = 2000
UNTRAINED = "weights of the start"


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Train a head for each run, and write table and chart.

    Raises:
        UserError: If a run is not finished, or there are too few images.
    """
    if not options.runs:
        raise UserError("--runs must name at least one finished run to study transfer, got none")
    runs = finished_runs(options.runs)
    if options.images < 2 * len(load_splits(config.data).train.class_names):
        raise UserError(f"--images must be at least two for each class, got {options.images}")
    networks = [(one.name, one, one.classifier()) for one in runs]
    first = runs[0]
    networks.append((UNTRAINED, first, _untrained(first)))
    rows: list[Row] = []
    for name, one, classifier in counted("training heads", networks):
        data = config.data.model_copy(update=_views(one.config.data))
        rows.append({"run": name, ACCURACY: _judged(classifier, data, options)})
    means = over_seeds(rows, "run")
    source = Path(config.data.source).name
    text = "\n".join(
        [
            f"# Transfer to {source}: a linear head on the frozen features of each run\n",
            *([markdown_table(means)] if means else []),
            markdown_table(rows),
            f"`{UNTRAINED}` are those with which the classifier of {first.name} began to learn.\n",
        ]
    )
    write_answer(folder, "transfer", text, rows)
    bars = {str(row["run"]): interval_of(row, ACCURACY) for row in means or rows}
    chart = Chart(f"Test images of {source} that are recognised", "", "share of images, %")
    draw_bars(folder / "transfer.png", chart, bars)
    return text


ACCURACY = "recognised"


def _views(data: DataConfig) -> dict[str, Any]:
    return {"image_size": data.image_size, "resize_px": data.resize_px}


def _untrained(one: FinishedRun) -> nn.Module:
    config = one.config
    return build_classifier(
        config.classifier,
        len(one.class_names),
        image_size=config.data.image_size,
        seed=config.run.seed,
    ).eval()


def _judged(classifier: nn.Module, data: DataConfig, options: Namespace) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits = load_splits(data)
    learned, labels = _features(classifier, splits.train, data, options)
    shown, truth = _features(classifier, splits.test, data, options)
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    head.fit(learned, labels)
    return share(int((head.predict(shown) == truth).sum()), len(truth))


@torch.no_grad()
def _features(
    classifier: Any, images: ImageSet, data: DataConfig, options: Namespace
) -> tuple[Float[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    order = numpy_rng("study transfer", options.seed).permutation(len(images))
    chosen = np.sort(order[: options.images])
    skips = data.on_bad_image == "skip"
    mean, std = input_statistics(classifier)
    found, places = [], []
    for batch, indices in ordered_batches(
        Subset(images, chosen), eval_transform(data), 128, skips_bad_images=skips
    ):
        maps = classifier.forward_features(normalise(batch, mean, std))
        found.append(classifier.forward_head(maps, pre_logits=True).flatten(1).float().numpy())
        places.append(indices.numpy())
    return np.concatenate(found), np.asarray(images.labels)[chosen][np.concatenate(places)]


def _add_options(parser: ArgumentParser) -> None:
    add_runs_option(parser, "of any data, whose backbones are taken")
    add_draw_options(parser, IMAGES, "most training and most test images")


STUDY = Study(
    about=(
        "Whether the features that runs have learned are of use elsewhere: RECIPE names the other "
        "data set, --runs the finished runs. A linear head (logistic regression) is trained on "
        "the frozen features of each, and on those of the weights with which the first began. "
        "Writes transfer.md, transfer.csv and transfer.png. One run and digits took "
        "10 s of one core."
    ),
    examples="digits_diff_mix --runs runs/pocket_birds-seed0,runs/pocket_birds_sgd_mix-seed0",
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
