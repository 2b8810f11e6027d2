"""The judge of an experiment that trains its own (`gate.classifier: self`), kept as a file.

The file's name is a digest of what decides the training, so that later seeds and runs find it. The
gate's version, and with it every request, names the digest of its content.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import nn

from online_aug.classifier.class_names import class_metadata
from online_aug.classifier.evaluation import evaluate
from online_aug.classifier.fit import check_fit
from online_aug.classifier.judge import JudgeRecipe, train_judge
from online_aug.classifier.model import check_name, check_pretrained
from online_aug.config import Config
from online_aug.config.training import ClassifierConfig
from online_aug.console import open_console, percent, print_line, progress
from online_aug.data.transforms import train_transform
from online_aug.errors import UserError
from online_aug.files import alone, write_atomically
from online_aug.generation.gate import judge_size
from online_aug.saliency.maps import file_digest

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

VERSION = 1
"""Raised if the same recipe begins to train another judge."""


@dataclass(frozen=True)
class OwnJudge:
    """The judge that an experiment trains on its own images before it generates any."""

    experiment: "Experiment"

    @property
    def is_wanted(self) -> bool:
        """Whether the gate needs such a judge."""
        config = self.experiment.config
        return config.gate.classifier == "self" and config.is_planned

    @property
    def is_ready(self) -> bool:
        """Whether nothing is left to train."""
        return not self.is_wanted or self.file.is_file()

    @cached_property
    def recipe(self) -> JudgeRecipe:
        """How it is trained."""
        config = self.experiment.config
        seen = config.data.model_copy(update={"image_size": judge_size(config)})
        return JudgeRecipe(
            settings=self._settings,
            transform=train_transform(seen),
            steps=config.gate.steps,
        )

    @property
    def _settings(self) -> ClassifierConfig:
        config = self.experiment.config
        own = config.classifier.checkpoint if config.gate.name is None else None
        return config.classifier.helper(config.gate.name, own)

    @cached_property
    def file(self) -> Path:
        """The file that has, or will have, its weights."""
        start = self._settings.checkpoint
        keys = ("name", "pretrained", "mean", "std", "drop_rate", "head_only")
        decides = {
            "version": VERSION,
            "settings": {key: getattr(self._settings, key) for key in keys},
            "start": start and file_digest(start),
            "transform": repr(self.recipe.transform),
            "steps": self.recipe.steps,
            "classes": self.experiment.data.images.class_names,
            "images": self.experiment.data.sources.content_digest(),
        }
        digest = hashlib.blake2b(json.dumps(decides).encode(), digest_size=16).hexdigest()
        return self.experiment.config.gate.path / f"{digest}.safetensors"

    def check(self) -> None:
        """Refuse a judge that could not be trained, before anything is started or written.

        Raises:
            UserError: If its network is unknown, or does not take images of its size.
        """
        config = self.experiment.config
        if not self.is_wanted or self.is_ready:
            return
        if config.gate.name is not None:
            check_name(config.gate.name, "gate.name")
        classes, side = len(self.experiment.data.images.class_names), judge_size(config)
        check_fit(self._settings, classes, side)
        check_pretrained(self._settings, classes, side)

    def named_in(self, config: Config) -> Config:
        """Return a configuration in which the trained judge is a file like any other.

        Raises:
            UserError: If it is not trained yet.
        """
        if not self.is_wanted:
            return config
        if not self.is_ready:
            raise UserError(
                "gate.path must hold the judge that was trained on these images, "
                f"{self.file} is missing; run online-aug fill first"
            )
        found = {"classifier": self.file, "top_k": config.gate.rank_limit}
        return config.model_copy(update={"gate": config.gate.model_copy(update=found)})


def ensure_judge(experiment: "Experiment") -> None:
    """Train the judge of generated images unless it is there; a second process waits for it.

    Raises:
        UserError: If `gate.path` cannot be written or a training image cannot be read.
    """
    judge = experiment.judge
    if judge.is_ready:
        return
    try:
        with alone(judge.file.with_suffix(".lock")):
            if not judge.is_ready:
                _train(experiment, judge)
    except OSError as error:
        raise UserError(
            f"gate.path must be a writable folder, got {judge.file.parent} ({error.strerror})"
        ) from error


def _train(experiment: "Experiment", judge: OwnJudge) -> None:
    title = "training the judge of generated images"
    with progress(title, judge.recipe.steps) as bar:

        def report(loss: float) -> None:
            bar.advance(note=f"loss {loss:.3f}")

        images = experiment.splits.train
        trained = train_judge(judge.recipe, images, experiment.device, report)
    _tell_accuracy(experiment, trained)
    metadata = class_metadata(images.class_names)
    weights: Mapping[str, torch.Tensor] = {
        name: value.cpu().contiguous() for name, value in trained.state_dict().items()
    }
    write_atomically(judge.file, safetensors.torch.save(dict(weights), metadata=metadata))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell_accuracy(experiment: "Experiment", trained: nn.Module) -> None:
    validation = experiment.splits.val
    if not len(validation):
        return
    seen = experiment.config.data.model_copy(update={"image_size": judge_size(experiment.config)})
    found = evaluate(trained, validation, seen, experiment.device)
    print_line(
        open_console(),
        f"the judge is right on {percent(found.top1)} of {found.images} validation images",
    )
