"""Parts that the examples share: recipe, input of a classifier, and the accuracy at the end.

A loop of one's own needs none of it: it has a recipe and test images already.
"""

import sys
from collections.abc import Callable

import timm.data
import torch
from torch import Tensor, nn

from online_aug import Config, load_config
from online_aug.classifier.evaluation import evaluate
from online_aug.config.loading import find_recipe
from online_aug.data.sources import load_splits


def recipe() -> Config:
    """Return the recipe and the KEY=VALUE arguments of the command line; quickstart by default."""
    name, *changes = sys.argv[1:] or ["quickstart"]
    if "=" in name:
        name, changes = "quickstart", [name, *changes]
    return load_config(find_recipe(name), changes)


def input_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what makes the model's input of uint8 images."""
    found = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(found[name]).view(3, 1, 1) for name in ("mean", "std"))
    return lambda images: (images.float() / 255 - mean.to(images.device)) / std.to(images.device)


def print_accuracy(model: nn.Module, config: Config) -> None:
    """Print the model's accuracy on the recipe's test images, as train.py measures it."""
    test = load_splits(config.data).test
    found = evaluate(model.cpu(), test, config.data, "cpu")
    print(f"test accuracy: {100 * found.top1:.1f} %")
