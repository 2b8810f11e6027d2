"""Studies: one question about a configuration each, answered with a table and pictures.

A new one is a file with a `Study` named STUDY, and a line in the table here.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from online_aug.config import Config

STUDIES = {
    "masks": "whether the foregrounds hold the objects, and what SGD-Mix makes of them",
    "drift": "at which strength images stop showing their class; your own images by strength",
    "targets": "how many candidates SGD-Mix needs to find a background",
    "refinement": "what refining a mix changes, as a whole or around the source's foreground",
    "noisy_saliency": "how wrong saliency maps may be before a mix loses its class",
    "cost": "what an image takes of time and disk by stage, and a whole run",
    "images": "how faithful to their class and how diverse generated images are",
    "labels": "which label between two classes is best: soft ones and hard ones",
    "reuse": "what more unique images bring, each served less often",
    "overhead": "what accuracy costs in training time",
    "robustness": "how finished runs stand adversarial noise and corruptions",
    "transfer": "of what use the features of finished runs are for another data set",
}
"""What each study asks; it is STUDY in the module of this package that has its name."""
TRAINED = ("labels", "reuse", "overhead")
"""Studies that are in the module `accuracies`, each under its name in capitals."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about a configuration."""

    about: str
    """What it does and what it needs, for the help."""
    examples: str
    """Arguments that the help shows, one example a line."""
    add_options: Callable[[ArgumentParser], None]
    """Adds its options to a parser."""
    run: Callable[[Config, Namespace, Path], str]
    """Answers the question into a folder and returns the answer as Markdown."""


def find_study(name: str) -> Study:
    """Import a study of the table."""
    place, constant = ("accuracies", name.upper()) if name in TRAINED else (name, "STUDY")
    study: Study = getattr(import_module(f"online_aug.studies.{place}"), constant)
    return study
