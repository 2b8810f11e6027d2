"""Feedback of a loop of one's own, by the same means as the trainer's."""

from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.distributed.world import World
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.loader.loader import OnlineAugLoader
from online_aug.training.feedback import LossPublisher, Published, SaliencyPublisher


class LoopFeedback:
    """Takes losses and classifiers from the loop and tells the generation process of them."""

    def __init__(
        self, experiment: Experiment, loader: OnlineAugLoader, world: World, folder: Path
    ) -> None:
        """Watch for a loader, which is to hold this object.

        Args:
            experiment: What is trained on.
            loader: The loader of this rank.
            world: This rank among all ranks.
            folder: Folder that all ranks share.
        """
        self._follows = experiment.saliency.follows_classifier
        self._maps = SaliencyPublisher(experiment, proxy(loader), world, folder)
        # A caller's losses may be on any device and are few: they are summed on the host.
        self._losses = LossPublisher(experiment, loader.process, torch.device("cpu"))
        self._reports = 0

    def report(self, losses: Float[Tensor, " b"], labels: Float[Tensor, "b k"]) -> None:
        """Take the losses of samples with these soft labels; each call counts as a step."""
        if self._losses.classes is None:
            return
        self._losses.classes.add_losses(losses.cpu(), labels.cpu())
        self._reports += 1
        self._losses.after_step(self._reports)

    def publish(self, epoch: int, classifier: nn.Module) -> None:
        """Plan an epoch that has not begun by what the classifier looks at now.

        Raises:
            UserError: If a training image cannot be read.
        """
        if self._follows:
            self._maps.publish(epoch, classifier)

    def state_dict(self) -> dict[str, Any]:
        """Return the published versions, as plain values."""
        return {"published": [[each.epoch, each.version] for each in self._maps.published]}

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Plan with every version that was published up to the start of an epoch.

        Raises:
            UserError: If the cache does not hold the maps of one.
        """
        if self._maps.published:
            raise UserError("load_state_dict must come before the first publish: open a new loader")
        for first, version in state["published"]:
            if first <= epoch:
                self._maps.take_up(Published(first, version))


def check_feedback(experiment: Experiment, world: World) -> None:
    """Refuse maps that follow the classifier where ranks cannot tell each other of them.

    Raises:
        UserError: If so.
    """
    is_apart = world.world_size > 1 and (world.control is None or world.nodes > 1)
    if experiment.saliency.follows_classifier and is_apart:
        raise UserError(
            "saliency.teacher must be a file of weights if the ranks of a loop of one's own are on "
            "several nodes, or not joined by torch.distributed, got classifier"
        )
