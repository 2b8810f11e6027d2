"""What the classifier being trained says to the generation process: saliency maps, losses.

How hard each class is for the classifier right now.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.distributed.world import World, barrier, share
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.teacher import gaze_of, make_maps
from online_aug.files import from_json, to_json, write_atomically
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import open_store, pin_if_awaited
from online_aug.saliency.maps import encode_map, weights_version
from online_aug.training.engine import TrainingEngine

VERSIONS_FILE = "saliency_versions.jsonl"


@dataclass(frozen=True)
class Published:
    """One version of the maps."""

    epoch: int
    """The first that was planned by them."""
    version: str


class SaliencyPublisher:
    """Every `saliency.refresh_epochs` epochs: maps by the classifier, and the plan they lead to.

    The first rank makes the maps between two epochs, a forward pass over the training set, the
    caches of the other nodes get the same ones, and the run directory says which version began
    when. So what is planned is a function of the training alone, on every rank and after a restart.
    """

    def __init__(
        self, experiment: Experiment, loader: OnlineAugLoader, world: World, directory: Path
    ) -> None:
        self._experiment, self._loader, self._world = experiment, loader, world
        self._path = (experiment.config.run.replay or directory) / VERSIONS_FILE
        self._published: list[Published] = []

    def resume(self, epoch: int) -> None:
        """Take up again what was published up to the start of this epoch."""
        if self._experiment.saliency.follows_classifier and self._path.exists():
            for each in self._read():
                if each.epoch <= epoch:
                    self._take_up(each)

    def refresh(self, epoch: int, classifier: nn.Module) -> None:
        """Publish a new version where one is due at the start of this epoch; all ranks call it.

        Args:
            epoch: About to be trained.
            classifier: The weights to look with: their average where `optim.ema` keeps one. It
                stays as it is.

        Raises:
            UserError: If a training image cannot be read.
            CacheError: If the maps cannot be written.
        """
        is_due = epoch > 0 and epoch % self._experiment.config.saliency.refresh_epochs == 0
        is_done = any(each.epoch == epoch for each in self._published)
        if not self._experiment.saliency.follows_classifier or not is_due or is_done:
            return
        if self._world.is_first and self._experiment.config.run.replay is None:
            self._publish(epoch, classifier)
        barrier(self._world)
        for each in self._read():
            if each.epoch == epoch:  # none where the weights are those of the version before
                self._share(each.version)
                self._take_up(each)

    def _publish(self, epoch: int, classifier: nn.Module) -> None:
        experiment = self._experiment
        saliency = experiment.saliency
        version = weights_version(classifier, saliency.teacher_name, saliency.teacher_size)
        if version in {each.version for each in self._published}:
            return
        with open_store(experiment.config, experiment.splits.train) as store:
            look = gaze_of(classifier, self._world.device)
            make_maps(experiment, store, version, look, is_shown=False)
        lines = [to_json(each) for each in (*self._published, Published(epoch, version))]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines))

    def _share(self, version: str) -> None:
        """Put the first node's maps into the caches of the others."""
        experiment, world = self._experiment, self._world
        if world.nodes == 1 or experiment.config.run.replay is not None:
            return
        with open_store(experiment.config, experiment.splits.train) as store:
            maps = b""
            if world.is_first:
                table = experiment.saliency.table(version, experiment.data.digests)
                maps = b"".join(encode_map(values) for values in table.maps)
            maps = share(world, maps)
            if world.is_first_of_node and not world.is_first:
                size = len(maps) // len(experiment.data.digests)
                parts = (maps[at : at + size] for at in range(0, len(maps), size))
                store.put_saliency(version, dict(zip(experiment.data.digests, parts, strict=True)))
        barrier(world)

    def _take_up(self, newest: Published) -> None:
        self._published.append(newest)
        plan = self._experiment.plan_of(newest.version)
        with open_store(self._experiment.config, self._experiment.splits.train) as store:
            pin_if_awaited(store, self._experiment.config, [request.key for request in plan])
        self._loader.extend(
            plan,
            version=newest.version,
            epoch=newest.epoch,
            lag=self._experiment.config.saliency.max_version_lag,
        )

    def _read(self) -> list[Published]:
        lines = self._path.read_text().splitlines()
        return [from_json(Published, line, str(self._path)) for line in lines]


class LossPublisher:
    """Every `schedule.refresh_steps` steps: the classifier's loss on each class.

    The rank that owns the generation process tells it of its own share of the training, where
    `schedule.priority` is `hard`; elsewhere nothing is looked at.
    """

    def __init__(
        self,
        experiment: Experiment,
        loader: OnlineAugLoader,
        engine: TrainingEngine,
        device: torch.device,
    ) -> None:
        """Begin to watch the engine on its device, where there is somebody to tell."""
        schedule, self._process = experiment.config.schedule, loader.process
        self._every, self._engine = schedule.refresh_steps, engine
        self._losses: ClassLosses | None = None
        if schedule.priority == "hard" and self._process is not None:
            num_classes = len(experiment.splits.train.class_names)
            self._losses = ClassLosses(num_classes, device)
            engine.watch = self._losses.add

    def after_step(self) -> None:
        """Publish where it is due; call it after every step."""
        if self._losses and self._process and self._engine.step % self._every == 0:
            self._process.publish_losses(self._losses.read())


DECAY = 0.99
"""What is left of a step's weight after one more: about the last hundred steps count."""
LEAST_MASS = 1e-3
"""Labels below this were not seen: what mixing leaves of a class tells nothing about it."""


class ClassLosses:
    """The running mean of the loss of each class, an image counted by its share of the label.

    Nothing waits for the device until `read`.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Know nothing yet."""
        self._losses = torch.zeros(num_classes, device=device)
        self._mass = torch.zeros(num_classes, device=device)

    @torch.no_grad()
    def add(self, logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"]) -> None:
        """Count one batch.

        Args:
            logits: What the classifier said.
            labels: As they are before label smoothing, which says nothing about the image.
        """
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self._losses.mul_(DECAY).add_(losses @ labels)
        self._mass.mul_(DECAY).add_(labels.sum(0))

    def read(self) -> list[float | None]:
        """By label; None for a class that was not seen, or whose loss is not finite."""
        means, mass = (self._losses / self._mass).tolist(), self._mass.tolist()
        return [
            mean if seen >= LEAST_MASS and math.isfinite(mean) else None
            for mean, seen in zip(means, mass, strict=True)
        ]
