"""Feedback of the classifier in training to the generation process: saliency maps and losses.

`SaliencyPublisher` makes new maps between epochs and the plan that follows from them.
`LossPublisher` tells how hard each class is at the moment.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.distributed.world import World, barrier, share
from online_aug.documents import DocumentError, read_text
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import make_foregrounds
from online_aug.experiment.saliency import parts_of, viewer_by
from online_aug.files import from_json, to_json, write_atomically
from online_aug.loader.back_pressure import GeneratorProcess
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import open_store, pin_if_awaited
from online_aug.saliency.maps import weights_version

VERSIONS_FILE = "saliency_versions.jsonl"
"""File in the run directory that says which version began when."""


@dataclass(frozen=True)
class Published:
    """One version of the saliency maps."""

    epoch: int
    """First epoch that was planned with it."""
    version: str


class SaliencyPublisher:
    """Makes new saliency maps every `saliency.refresh_epochs` epochs, and plans with them.

    The first rank makes the maps between two epochs, with a forward pass over the training set. The
    caches of the other nodes get copies, and the run directory says which version began when. So
    the plan is a function of the training alone, on every rank and after a restart.
    """

    def __init__(
        self, experiment: Experiment, loader: OnlineAugLoader, world: World, directory: Path
    ) -> None:
        self._experiment, self._loader, self._world = experiment, loader, world
        self._path = (experiment.config.run.replay or directory) / VERSIONS_FILE
        self.published: list[Published] = []
        """The versions in use so far."""

    def resume(self, epoch: int) -> None:
        """Plan again with every version published up to the start of this epoch."""
        if self._experiment.saliency.follows_classifier and self._path.exists():
            for each in self._read():
                if each.epoch <= epoch:
                    self.take_up(each)

    def refresh(self, epoch: int, classifier: nn.Module) -> None:
        """Publish a new version if one is due at the start of this epoch; all ranks call it.

        Args:
            epoch: Epoch about to be trained.
            classifier: Classifier that looks at the images, with averaged weights if `optim.ema` is
                set; it is not changed.

        Raises:
            UserError: If a training image cannot be read.
            CacheError: If the maps cannot be written.
        """
        is_due = epoch > 0 and epoch % self._experiment.config.saliency.refresh_epochs == 0
        is_done = any(each.epoch == epoch for each in self.published)
        if self._experiment.saliency.follows_classifier and is_due and not is_done:
            self.publish(epoch, classifier)

    def publish(self, epoch: int, classifier: nn.Module) -> None:
        """Publish what the classifier looks at now for the epochs from this one on."""
        if self._world.is_first and self._experiment.config.run.replay is None:
            self._publish(epoch, classifier)
        barrier(self._world)
        for each in self._read():
            if each.epoch == epoch:  # none if the weights did not change since the last one
                self._share(each.version)
                self.take_up(each)

    def _publish(self, epoch: int, classifier: nn.Module) -> None:
        experiment = self._experiment
        saliency = experiment.saliency
        version = saliency.version_of(
            weights_version(classifier, saliency.teacher_settings.name, saliency.teacher_size)
        )
        if version in {each.version for each in self.published}:
            return
        with open_store(experiment.config, experiment.splits.train) as store:
            viewer = viewer_by(experiment, classifier, self._world.device)
            make_foregrounds(experiment, store, version, viewer, is_shown=False)
        lines = [to_json(each) for each in (*self.published, Published(epoch, version))]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines))

    def _share(self, version: str) -> None:
        """Copy the first node's maps and masks into the caches of the other nodes."""
        experiment, world = self._experiment, self._world
        if world.nodes == 1 or experiment.config.run.replay is not None:
            return
        digests = experiment.data.digests
        with open_store(experiment.config, experiment.splits.train) as store:
            for part in parts_of(version):
                stored = (store.get_saliency(part, digest) or b"" for digest in digests)
                joined = share(world, b"".join(stored) if world.is_first else b"")
                if world.is_first_of_node and not world.is_first:
                    size = len(joined) // len(digests)  # all of one version are of one size
                    parts = (joined[at : at + size] for at in range(0, len(joined), size))
                    store.put_saliency(part, dict(zip(digests, parts, strict=True)))
        barrier(world)

    def take_up(self, newest: Published) -> None:
        """Plan with a version whose maps the cache holds."""
        self.published.append(newest)
        plan = self._experiment.plan_of(newest.version)
        with open_store(self._experiment.config, self._experiment.splits.train) as store:
            pin_if_awaited(store, self._experiment.config, plan)
        self._loader.extend(
            plan,
            version=newest.version,
            epoch=newest.epoch,
            lag=self._experiment.config.saliency.max_version_lag,
        )

    def _read(self) -> list[Published]:
        try:
            lines = read_text(self._path).splitlines()
        except DocumentError as error:
            raise UserError(f"{self._path} must list versions of maps: {error}") from None
        return [from_json(Published, line, str(self._path)) for line in lines]


class LossPublisher:
    """Publishes the classifier's loss on each class every `schedule.refresh_steps` steps.

    Only the rank that owns the generation process does, with the losses of its own batches, and
    only if `schedule.priority` is `hard`.
    """

    def __init__(
        self, experiment: Experiment, process: GeneratorProcess | None, device: torch.device
    ) -> None:
        """Sum losses up on a device, if there is a process to tell them."""
        schedule, self._process = experiment.config.schedule, process
        self._every = schedule.refresh_steps
        self.classes: ClassLosses | None = None
        """Takes the losses; None if nobody asks for them."""
        if schedule.priority == "hard" and process is not None:
            self.classes = ClassLosses(len(experiment.splits.train.class_names), device)

    def after_step(self, step: int) -> None:
        """Publish if it is due; call it after every step with its number."""
        if self.classes and self._process and step % self._every == 0:
            self._process.publish_losses(self.classes.read())


DECAY = 0.99
"""Decay of a step's weight with each further step: about the last hundred steps count."""
LEAST_MASS = 1e-3
"""Sum of labels below which a class counts as not seen: Mixup leaves traces of every class."""


class ClassLosses:
    """Running mean of the loss on each class; an image counts by the class's share of its label.

    Only `read` waits for the device.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Start with no class seen."""
        self._losses = torch.zeros(num_classes, device=device)
        self._mass = torch.zeros(num_classes, device=device)

    @torch.no_grad()
    def add(self, logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"]) -> None:
        """Count one batch.

        Args:
            logits: Output of the classifier.
            labels: Soft labels before label smoothing.
        """
        self.add_losses(F.cross_entropy(logits.float(), labels, reduction="none"), labels)

    @torch.no_grad()
    def add_losses(self, losses: Float[Tensor, " b"], labels: Float[Tensor, "b k"]) -> None:
        """Count the losses of one batch with its soft labels."""
        self._losses.mul_(DECAY).add_(losses @ labels)
        self._mass.mul_(DECAY).add_(labels.sum(0))

    def read(self) -> list[float | None]:
        """Return the losses by label; None for a class not seen, or whose loss is not finite."""
        means, mass = (self._losses / self._mass).tolist(), self._mass.tolist()
        return [
            mean if seen >= LEAST_MASS and math.isfinite(mean) else None
            for mean, seen in zip(means, mass, strict=True)
        ]
