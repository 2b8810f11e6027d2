"""A judge of generated images: a classifier that has only seen real ones.

It is trained by an ordinary launch of `online-aug train` on the real images of the recipe, also on
those that `data.examples_per_class` or a long tail leaves out, or its weights are given.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from cache import content_digest
from online_aug.classifier.class_names import MODEL_FILE, check_class_names
from online_aug.classifier.evaluation import evaluate
from online_aug.classifier.model import build_classifier, input_statistics
from online_aug.comparison.runs import REAL, Run
from online_aug.config import Config
from online_aug.config.loading import changed, resolved_yaml
from online_aug.console import percent
from online_aug.data.sources import load_splits
from online_aug.data.transforms import fit_square, normalise
from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError
from online_aug.files import write_atomically
from online_aug.methods import Picture
from online_aug.studies.frame.trainings import train

_TOGETHER = 64


class Verdict(NamedTuple):
    """The class that the judge sees in an image, and the probability of each."""

    seen: int
    probabilities: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class Judge:
    """A classifier that tells which class an image shows."""

    classifier: torch.nn.Module
    side: int
    """Side of the square that it looks at, px."""
    accuracy: float
    """Share of the test images that it gets right."""
    about: str
    """Its network and accuracy, in a sentence."""

    @torch.no_grad()
    def __call__(self, images: Sequence[Picture]) -> list[Verdict]:
        """Return what it sees in each image, of any size."""
        mean, std = input_statistics(self.classifier)
        device = next(self.classifier.parameters()).device
        verdicts: list[Verdict] = []
        for start in range(0, len(images), _TOGETHER):
            tensors = [torch.from_numpy(image.copy()) for image in images[start:][:_TOGETHER]]
            seen = torch.stack([fit_square(t.permute(2, 0, 1), self.side) for t in tensors])
            logits = self.classifier(normalise(seen.to(device), mean, std)).float()
            rows = logits.softmax(1).cpu().numpy()
            verdicts += [Verdict(int(row.argmax()), row) for row in rows]
        return verdicts

    def classes(self, images: Sequence[Picture]) -> Int[np.ndarray, " n"]:
        """Return the class that it sees in each image."""
        return np.array([verdict.seen for verdict in self(images)], np.int64)


def add_judge_options(parser: ArgumentParser) -> None:
    """Add the option that names the judge."""
    parser.add_argument(
        "--judge",
        type=Path,
        metavar="WEIGHTS",
        help=(
            "weights of a classifier like that of the recipe (classifier.name), trained on real "
            "images, such as the model.safetensors of a run; without it the study trains one"
        ),
    )


def check_judge(config: Config, weights: Path | None) -> None:
    """Refuse weights that cannot judge, before anything is made.

    Raises:
        UserError: If there is no such file, or it is of another network or other classes.
    """
    if weights is not None:
        _load(config, weights, load_splits(config.data).train.class_names)


def open_judge(config: Config, weights: Path | None, folder: Path) -> Judge:
    """Return the judge: of the weights given, or trained into a folder unless it is there.

    Raises:
        UserError: If the weights cannot be used.
        RunError: If training failed.
    """
    about = f"the classifier of {weights}"
    if weights is None:
        weights = _trained(config, folder)
        about = f"a {config.classifier.name} trained by the study on all real training images"
    splits = load_splits(config.data)
    device = plan_devices(config.wished_devices, trains=False).generator
    classifier = _load(config, weights, splits.test.class_names).to(device)
    accuracy = evaluate(classifier, splits.test, config.data, device).top1
    return Judge(
        classifier.eval(),
        config.data.image_size,
        accuracy,
        f"The judge is {about}; it gets {percent(accuracy)} of the test images right.",
    )


def _load(config: Config, weights: Path, names: Sequence[str]) -> torch.nn.Module:
    if not weights.is_file():
        raise UserError(f"--judge must be a file of weights, got {weights}, which is none")
    check_class_names(weights, "--judge", names)
    side = config.data.image_size
    settings = config.classifier.helper(None, weights)
    return build_classifier(settings, len(names), image_size=side, key="--judge", needs_head=True)


def _trained(config: Config, folder: Path) -> Path:
    plain = _on_real_images(config)
    values = plain.model_dump(mode="json")
    decisive = json.dumps([values[section] for section in REAL], sort_keys=True)
    # Other settings make another judge, in a folder of its own.
    place = folder / f"judge-{content_digest(decisive.encode())[:8]}"
    run = {"dir": str(folder.resolve()), "name": place.name, "resume": True}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = place.with_suffix(".yaml")
    write_atomically(recipe, resolved_yaml(changed(plain, "run", **run)))
    train([Run("judge", plain.run.seed, str(recipe), (), place)], "training a judge on real images")
    return place / MODEL_FILE


def _on_real_images(config: Config) -> Config:
    data: dict[str, object] = {}
    if config.data.examples_per_class is not None:
        data = {"examples_per_class": None, "epoch_repeats": 1}
    if config.data.imbalance_factor is not None:
        data["imbalance_factor"] = None
    real = {"synthetic_probability": 0, "final_probability": None, "imported": None}
    plain = changed(config, "mixing", class_probability={}, **real)
    return changed(plain, "data", **data) if data else plain
