"""The part of the configuration that says what is trained, and how."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from online_aug.config_types import (
    Count,
    DeepSpeedSettings,
    Exponent,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Text,
)


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
    head_only: bool = False
    """Train the head alone; all else stays as it was loaded, running statistics included."""
    channels_last: bool = False
    """Keep weights and images with the channels innermost, which convolutions on GPUs like."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Format of the forward pass; weights stay in float32, float16 scales its loss."""
    deepspeed: Annotated[dict[str, Any], DeepSpeedSettings] = Field(default_factory=dict)
    """DeepSpeed settings merged under ours, such as `{zero_optimization: {stage: 1}}`, or the JSON
    file that holds them."""


class OptimConfig(Section):
    """How the classifier is trained."""

    name: Text = "sgd"
    """Any timm optimizer, such as `adamw` or `lamb`; `sgd` is Nesterov's, `momentum` is not."""
    lr: Positive = 0.05
    """Peak learning rate."""
    weight_decay: NotNegative = 5e-4
    """Weight decay, not applied to biases and norms."""
    momentum: Fraction = 0.9
    """Momentum where the optimizer has one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's optimizer, such as `{betas: [0.9, 0.95]}`."""
    layer_decay: Annotated[float, Field(gt=0, le=1), Exponent] | None = None
    """Factor of the learning rate from each layer to the one before it (timm); null is off."""
    accumulation: Count = 1
    """Parts in which a rank computes its batch one after another, to save memory."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient over all weights; null is off."""
    batch_size: Count = 64
    """Images an optimizer step over all ranks together."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.1
    """Mass moved from every label to the uniform distribution."""
    mixup: NotNegative | None = None
    """Beta parameter of Mixup (timm) over soft labels; null is off."""
    cutmix: NotNegative | None = None
    """Beta parameter of CutMix (timm) over soft labels; null is off."""
    mix_probability: Fraction = 1.0
    """Probability that a batch is mixed where Mixup or CutMix is on."""
    schedule: Literal["cosine", "constant", "step", "multistep", "poly", "tanh"] = "cosine"
    """Learning rate after the warm-up; the last four are timm's."""
    decay_epochs: Annotated[tuple[Count, ...], Field(min_length=1)] = (30,)
    """Schedule `step`: epochs between two decays; `multistep`: epochs after which there is one."""
    decay_rate: Fraction = 0.1
    """Schedules `step` and `multistep`: factor of the learning rate at each decay; `poly`: power of
    what is left of the run."""
    min_lr: NotNegative = 0.0
    """Where `cosine`, `poly` and `tanh` end."""
    warmup_epochs: NotNegative = 1.0
    """Epochs of linear warm-up."""
    ema: Annotated[float, Field(gt=0, lt=1), Exponent] | None = None
    """Decay of an average of the weights, which is then what is evaluated; null is off."""
