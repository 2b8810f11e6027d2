"""The part of the configuration that says what is trained, and how."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from online_aug.config_types import Count, Exponent, Fraction, NotNegative, Positive, Section


class ClassifierConfig(Section):
    """The classifier being trained."""

    name: str = "resnet50"
    """Any timm model name."""
    pretrained: bool = False
    """Start from timm's weights for this name (hub or local cache)."""
    checkpoint: Path | None = None
    """Start from this file of weights instead."""
    drop_rate: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.0
    """Dropout before the head."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed settings merged under ours, such as `{zero_optimization: {stage: 1}}`."""


class OptimConfig(Section):
    """How the classifier is trained."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    lr: Positive = 0.05
    """Peak learning rate."""
    weight_decay: NotNegative = 5e-4
    """Weight decay, not applied to biases and norms."""
    momentum: Fraction = 0.9
    """Momentum of SGD (Nesterov)."""
    batch_size: Count = 64
    """Images an optimizer step over all ranks together."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.1
    """Mass moved from every label to the uniform distribution."""
    mixup: NotNegative | None = None
    """Beta parameter of Mixup (timm) over soft labels; null is off."""
    cutmix: NotNegative | None = None
    """Beta parameter of CutMix (timm) over soft labels; null is off."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_epochs: NotNegative = 1.0
    """Epochs of linear warm-up."""
    ema: Annotated[float, Field(gt=0, lt=1), Exponent] | None = None
    """Decay of an average of the weights, which is then what is evaluated; null is off."""
