"""The part of the configuration that says how the generator learns the classes."""

from pathlib import Path
from typing import Literal

from online_aug.config_types import Count, Positive, Section, Seed


class FinetuneConfig(Section):
    """Fine-tuning of the generator on the training images (Diff-Mix: tokens and LoRA)."""

    enabled: bool = True
    """Fine-tune before training where no result is found; DiffuseMix takes its model as it is."""
    path: Path = Path("runs/finetuned")
    """Folder of results, one sub-folder for each fingerprint."""
    steps: Count = 2000
    """Optimizer steps."""
    batch_size: Count = 8
    """Images a step."""
    lr: Positive = 5e-5
    """Learning rate of the LoRA weights."""
    token_lr: Positive = 5e-4
    """Learning rate of the class tokens."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Both learning rates over the steps: as they are (Diff-Mix), or falling to 0."""
    rank: Count = 10
    """Rank of the LoRA matrices."""
    seed: Seed = 0
    """Seed of the order, noise and initial LoRA weights."""
