"""A whole configuration on a few images and a random diffusion model."""

import numpy as np
import safetensors.torch
from PIL import Image

from online_aug.classifier.model import build_classifier
from online_aug.config import Config
from online_aug.config.training import ClassifierConfig
from online_aug.data.sources import load_splits
from online_aug.experiment.experiment import Experiment

COUNTS = {"train": 4, "val": 1, "test": 1}
CLASS_NAMES = ("crow", "jay")


def write_images(folder):
    """Two classes of noise of 20 x 16 px, every image different."""
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASS_NAMES):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([len(split), label, number])
                pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def make_config(folder, model, **sections):
    """Return a configuration that is small in everything; `sections` as in a YAML file."""
    images = folder / "images"
    defaults = {
        "run": {"dir": folder / "runs", "epochs": 2},
        "data": {
            "source": str(images if images.exists() else write_images(images)),
            "metaclass": "bird",
            "image_size": 16,
            "workers": 0,
        },
        "generation": {
            "model": str(model),
            "num_inference_steps": 4,
            "resolution": 64,
            "scheduler": "ddim",
            "variants_per_image": 2,
            "slots": 4,
        },
        "finetune": {"path": folder / "finetuned", "steps": 2, "batch_size": 2, "rank": 2},
        "cache": {"path": folder / "cache"},
        "devices": {"train": "cpu", "generate": "cpu"},
        "classifier": {"name": "test_resnet"},
        "optim": {"batch_size": 4},
    }
    names = defaults.keys() | sections.keys()
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in names}
    return Config.model_validate(merged)


def make_experiment(folder, model, **sections):
    config = make_config(folder, model, **sections)
    return Experiment(config, load_splits(config.data), "cpu")


def make_sgd_mix_experiment(folder, model, **saliency):
    """An experiment of SGD-Mix without fine-tuning, with these keys of `saliency`."""
    return make_experiment(
        folder,
        model,
        finetune={"enabled": False},
        method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5},
        saliency={"image_size": 64, "teacher": "classifier"} | saliency,
    )


def write_judge(path, classes=2):
    """Write the weights of an untrained classifier."""
    network = build_classifier(ClassifierConfig(name="test_resnet"), classes, seed=3)
    safetensors.torch.save_file(network.state_dict(), path)
    return path
