"""Whether a run can go on from where it stopped, told before anything is started or written."""

from pathlib import Path

import torch

from cache import Store
from cache.location import is_started
from online_aug.dataloader.loader import check_same_cache
from online_aug.recipe import Recipe
from online_aug.reporting.run_directory import is_finished
from online_aug.training.checkpoints import (
    FOLDER,
    check_same_training,
    checkpoint_path,
    made_with,
    newest_step,
    own_state_path,
    unreadable,
)
from online_aug.training.classifier import first_line
from online_aug.training.launched import is_first_process


def check_can_go_on(recipe: Recipe, directory: Path, ranks: int) -> None:
    """Refuse a run directory whose newest checkpoint is of another training or another cache.

    The checkpoint is passed over where the run is not to be resumed or has finished. Each node has
    a cache of its own: the first one's is looked at here.

    Args:
        recipe: Of this launch.
        directory: Of the run, which may not be there yet.
        ranks: That train, on all nodes.

    Raises:
        UserError: If so; names what differs.
    """
    config = recipe.config
    step = newest_step(directory / FOLDER)
    if not config.run.resume or step is None or is_finished(directory, config.run.epochs):
        return
    path = checkpoint_path(directory / FOLDER, step)
    num_classes = len(recipe.splits.train.class_names)
    check_same_training(path, config, made_with(config, num_classes=num_classes, ranks=ranks))
    if is_first_process():
        _check_cache(path, config.cache.path)


def _check_cache(checkpoint: Path, cache: Path) -> None:
    try:
        state = torch.load(own_state_path(checkpoint, rank=0), weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise unreadable(checkpoint, first_line(error)) from None
    position = 0
    if is_started(cache):
        with Store(cache, readonly=True) as store:
            position = store.position()
    check_same_cache(state["loader"], position)
