"""The sections on the classifier and on how it is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from online_aug.settings import (
    Channels,
    Count,
    DeepSpeedSettings,
    Deviations,
    Exponent,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Text,
)

if TYPE_CHECKING:
    from online_aug.config import Config


class ClassifierConfig(Section):
    """The classifier in training."""

    name: str = "resnet50"
    """Any timm model name."""
    pretrained: bool = False
    """Start from timm's weights for this name (hub or local cache)."""
    checkpoint: Path | None = None
    """Start from this file of weights instead. A head for other classes is left out; tensors of
    other names are taken in order if all their shapes agree."""
    mean: Channels | None = None
    """Mean of the input by channel that the weights expect, [0, 1], three numbers or one; null is
    timm's for the name."""
    std: Deviations | None = None
    """Standard deviation of the input by channel, (0, 1], likewise."""
    drop_rate: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.0
    """Dropout before the head."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's model, such as `{drop_path_rate: 0.1}` or `{patch_size: 4}`."""
    small_stem: bool = False
    """Let a ResNet of timm begin with a 3 x 3 convolution without stride and without pooling, as is
    usual for images of 32 or 64 px."""
    head: Literal["linear", "cosine"] = "linear"
    """The last layer: `cosine` has 30 times the cosine between features and class weights as
    logits; unless set, it is taken with `optim.loss: ldam`, which needs it."""
    head_only: bool = False
    """Train the head alone; everything else, running statistics included, stays as loaded."""
    channels_last: bool = False
    """Store weights and images with the channels innermost, which is faster on most GPUs."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward pass; weights stay in float32, `float16` scales the loss."""
    deepspeed: Annotated[dict[str, Any], DeepSpeedSettings] = Field(default_factory=dict)
    """DeepSpeed settings beside ours, such as `{zero_optimization: {stage: 1}}`, or the JSON file
    that holds them."""

    @property
    def statistics(self) -> str:
        """The given input statistics as a part of a version; empty if they are timm's."""
        given = {"mean": self.mean, "std": self.std}
        return "".join(
            f"-{name}-" + "-".join(f"{value:g}" for value in values)
            for name, values in given.items()
            if values is not None
        )

    def helper(self, name: str | None, weights: Path | None) -> "ClassifierConfig":
        """Return the settings of another classifier of these classes, with weights of its own.

        Args:
            name: timm name; None is this one's, which then has this one's input statistics.
            weights: File of its weights.
        """
        changes: dict[str, Any] = {"name": name or self.name, "checkpoint": weights}
        changes["head"] = "linear"
        if changes["name"] != self.name:
            changes |= {"mean": None, "std": None, "options": {}, "small_stem": False}
        return self.model_copy(update=changes)


class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: Text = "adamw"
    """Any timm optimizer, such as `adamw` or `lamb`; `sgd` is Nesterov's, `momentum` is not."""
    lr: Positive = 3e-3
    """Peak learning rate. Unless set it is 1e-3 if all of a classifier that starts from weights is
    trained, and with `sgd` or `momentum` 0.05 and 0.01."""
    weight_decay: NotNegative = 0.05
    """Weight decay; unless set, 5e-4 with `sgd` or `momentum`."""
    decays_all: bool = False
    """Apply weight decay to biases and norms too, as optimizers of PyTorch do unless told."""
    momentum: Fraction = 0.9
    """Momentum, if the optimizer has one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's optimizer, such as `{betas: [0.9, 0.95]}`."""
    layer_decay: Annotated[float, Field(gt=0, le=1), Exponent] | None = None
    """Factor of the learning rate from a layer to the one before it (timm); null is off."""
    accumulation: Count = 1
    """Parts into which a rank splits its batch, one after another, to save memory."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient over all weights; null is off."""
    skip_non_finite: bool = False
    """Skip and count optimizer steps whose loss or gradients are not finite, on all ranks alike; 20
    in a row end the run. Without it the run ends as soon as losses or weights stay not finite."""
    batch_size: Count = 64
    """Images in an optimizer step, over all ranks together."""
    loss: Literal["cross_entropy", "balanced_softmax", "ldam"] = "cross_entropy"
    """For long tails: `balanced_softmax` adds the logarithm of each class's size to its logit
    (arXiv:2007.10740), `ldam` has margins that are larger for rare classes (arXiv:1906.07413)."""
    reweight_after: Count | None = None
    """Epochs after which losses are weighed by the effective number of images of the class, as DRW
    of the LDAM paper does from 160 of 200; null never does."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.1
    """Mass moved from every label to the uniform distribution; unless set, 0 with `ldam`."""
    mixup: NotNegative | None = None
    """Beta parameter of Mixup (timm) over soft labels; null is off."""
    cutmix: NotNegative | None = None
    """Beta parameter of CutMix (timm) over soft labels; null is off."""
    cmo: Positive | None = None
    """Beta parameter of CMO (arXiv:2112.00412): a box of another training image, drawn so that all
    classes come up alike, is put onto an image; not in the first four epochs and the last three.
    The paper has 1 with `mix_probability` 0.5; null is off."""
    mix_probability: Fraction = 1.0
    """Probability that a batch is mixed if Mixup, CutMix or CMO is on."""
    mix_by: Literal["batch", "image"] = "batch"
    """Draw the weight, the box and whether to mix once for a batch, or for each image. The partner
    is of the same batch; Diff-Mix's code takes it from the whole training set."""
    schedule: Literal["cosine", "constant", "step", "multistep", "poly", "tanh"] = "cosine"
    """Learning rate after the warm-up; the last two are timm's."""
    decay_epochs: Annotated[tuple[Count, ...], Field(min_length=1)] = (30,)
    """Schedule `step`: epochs between two decays; `multistep`: epochs after which one comes."""
    decay_rate: Fraction = 0.1
    """Schedules `step` and `multistep`: factor of the learning rate at each decay; `poly`: power of
    the remaining share of the run."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end of `cosine`, `poly` and `tanh`."""
    warmup_epochs: NotNegative = 1.0
    """Epochs of linear warm-up."""
    warmup: Literal["before", "over"] = "before"
    """The warm-up comes before the cosine, or over its beginning: the cosine then runs from the
    first step and is multiplied by the warm-up, and images that fill no whole batch at the end of
    an epoch count for the length of both (Diff-Mix)."""
    schedule_by: Literal["step", "epoch"] = "step"
    """Change the learning rate at each step, or only at each epoch (DiffuseMix, long tails)."""
    ema: Annotated[float, Field(gt=0, lt=1), Exponent] | None = None
    """Decay of a running average of the weights, which is then evaluated; null is off."""

    @property
    def counts_left_over(self) -> bool:
        """Whether the schedule counts the images of an epoch instead of its whole batches."""
        return self.warmup == "over" and self.schedule_by == "step"


CMO_RESTS = (4, 3)
"""First and last epochs without CMO, as in its authors' code."""


def training_rules(config: "Config") -> Iterator[str]:
    """Yield a line for each broken rule between the keys of the training."""
    optim = config.optim
    if optim.loss == "ldam":
        yield from _ldam(config)
    if optim.cmo is None:
        return
    if optim.mixup or optim.cutmix:
        yield "optim.mixup and optim.cutmix must be null with optim.cmo, which mixes batches itself"
    if config.run.epochs <= sum(CMO_RESTS):
        yield (
            f"run.epochs must be above {sum(CMO_RESTS)} with optim.cmo, which leaves out the first "
            f"{CMO_RESTS[0]} and the last {CMO_RESTS[1]} epochs, got {config.run.epochs}"
        )


def _ldam(config: "Config") -> Iterator[str]:
    optim = config.optim
    soft = [f"method.gamma of {each.name}" for each in config.methods if hasattr(each, "gamma")]
    soft = soft if config.mixing.is_synthetic else []
    for key in ("mixup", "cutmix", "label_smoothing"):
        soft += [f"optim.{key}"] if getattr(optim, key) else []
    if soft:
        yield (
            "optim.loss must be cross_entropy or balanced_softmax with soft labels, which come "
            f"from {' and '.join(soft)}, got ldam: its margin is that of one class"
        )
    if config.classifier.head != "cosine":
        yield (
            "classifier.head must be cosine with optim.loss ldam, whose margins are distances "
            f"between cosines, got {config.classifier.head}"
        )
