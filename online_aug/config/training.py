"""The sections that say how a run trains: classifier, optimizer, mixing, run, cache, devices."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from online_aug.settings import (
    Count,
    DeepSpeedSettings,
    Devices,
    Exponent,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Seed,
    Text,
)


class ClassifierConfig(Section):
    """The classifier in training."""

    name: str = "resnet50"
    """Any timm model name."""
    pretrained: bool = False
    """Start from timm's weights for this name (hub or local cache)."""
    checkpoint: Path | None = None
    """Start from this file of weights instead."""
    drop_rate: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.0
    """Dropout before the head."""
    head_only: bool = False
    """Train the head alone; everything else, running statistics included, stays as loaded."""
    channels_last: bool = False
    """Store weights and images with the channels innermost, which is faster on most GPUs."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward pass; weights stay in float32, `float16` scales the loss."""
    deepspeed: Annotated[dict[str, Any], DeepSpeedSettings] = Field(default_factory=dict)
    """DeepSpeed settings beside ours, such as `{zero_optimization: {stage: 1}}`, or the JSON file
    that holds them."""


class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: Text = "sgd"
    """Any timm optimizer, such as `adamw` or `lamb`; `sgd` is Nesterov's, `momentum` is not."""
    lr: Positive = 0.05
    """Peak learning rate."""
    weight_decay: NotNegative = 5e-4
    """Weight decay, not applied to biases and norms."""
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
    batch_size: Count = 64
    """Images in an optimizer step, over all ranks together."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.1
    """Mass moved from every label to the uniform distribution."""
    mixup: NotNegative | None = None
    """Beta parameter of Mixup (timm) over soft labels; null is off."""
    cutmix: NotNegative | None = None
    """Beta parameter of CutMix (timm) over soft labels; null is off."""
    mix_probability: Fraction = 1.0
    """Probability that a batch is mixed if Mixup or CutMix is on."""
    schedule: Literal["cosine", "constant", "step", "multistep", "poly", "tanh"] = "cosine"
    """Learning rate after the warm-up; the last four are timm's."""
    decay_epochs: Annotated[tuple[Count, ...], Field(min_length=1)] = (30,)
    """Schedule `step`: epochs between two decays; `multistep`: epochs after which one comes."""
    decay_rate: Fraction = 0.1
    """Schedules `step` and `multistep`: factor of the learning rate at each decay; `poly`: power of
    the remaining share of the run."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end of `cosine`, `poly` and `tanh`."""
    warmup_epochs: NotNegative = 1.0
    """Epochs of linear warm-up."""
    ema: Annotated[float, Field(gt=0, lt=1), Exponent] | None = None
    """Decay of a running average of the weights, which is then evaluated; null is off."""


class RunConfig(Section):
    """The run: its name, place, seed, length and checkpoints."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run directory; null takes the name of the YAML file and the seed."""
    dir: Path = Path("runs")
    """Folder that holds the run directories."""
    seed: Seed = 0
    """Seed of classifier weights, order, mixing and transforms; never of the generated images."""
    epochs: Count = 20
    """Passes over the training set."""
    resume: bool = True
    """Resume from the newest checkpoint of the run directory, if there is one."""
    checkpoint_epochs: Count = 5
    """Epochs between two checkpoints; the last epoch and an interrupt always write one."""
    checkpoint_steps: Count | None = None
    """Optimizer steps between two further checkpoints, so that a crash loses less."""
    replay: Path | None = None
    """Directory of an earlier run with the same settings, whose images are served again in the same
    sequence, from its ledger and the cache; nothing is generated."""


class CacheConfig(Section):
    """The cache of generated images."""

    path: Path = Path("runs/cache")
    """Directory of the LMDB cache, shared by runs and seeds."""
    max_gib: Positive | None = None
    """Largest size of the images on disk, GiB; null is no limit."""
    eviction: Literal["served", "oldest"] | None = "served"
    """Images to remove when `max_gib` is reached: `served` removes those first that were served
    `mixing.max_times_sampled` times (once if that is null), then the oldest; `oldest` the oldest;
    null keeps all images and stops generation."""
    durability: Literal["power", "process"] = "power"
    """A stored image survives loss of `power`, or only the death of any `process` (faster)."""
    codec: Literal["auto", "webp_lossless", "png", "raw", "webp_lossy", "jpeg"] = "auto"
    """Format of stored images. `auto` is `jpeg` if most training images are JPEG files, so that
    real and generated images have the same compression artefacts; otherwise it is `webp_lossless`.
    The first three of the others are lossless, the last two leave artefacts."""


class DevicesConfig(Section):
    """The devices that train and those that generate."""

    train: Literal["auto"] | Devices = "auto"
    """`auto`, or a list such as `[cuda:0, cuda:1]` or `[cpu, cpu]` with a rank on each."""
    generate: Literal["auto", "none"] | Devices = "auto"
    """`auto`, `none` (serve the cache only), a device such as `cuda:1` or `cpu`, or a list of
    devices with a process on each."""
    share: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.5
    """Share of a GPU's speed that training keeps if a generation process is on the same GPU and
    pauses between its steps; 0 never pauses."""


class MixingConfig(Section):
    """How real and synthetic samples share a batch."""

    policy: Literal["global", "local", "concat"] = "global"
    """A synthetic sample replaces a real one and comes from the whole pool (`global`, Diff-Mix) or
    from the variants of that image (`local`, DA-Fusion); or it is added, and every real image is
    seen as well (`concat`, DiffuseMix)."""
    synthetic_probability: Fraction = 0.3
    """Probability that a slot of the batch gets a synthetic sample, [0, 1]; with `concat` the share
    of synthetic samples in the longer epoch."""
    final_probability: Fraction | None = None
    """The same probability in the last epoch; null keeps that of the first."""
    probability_schedule: Literal["linear", "cosine"] = "linear"
    """Change from the first epoch's probability to the last one's."""
    class_probability: dict[str, Fraction] = Field(default_factory=dict)
    """Probabilities by class name, for all epochs; the class is that of the real image which a
    synthetic sample would replace."""
    starvation: Literal["substitute", "wait"] = "substitute"
    """If no synthetic sample is ready: serve the real one and count it, or wait for one."""
    max_times_sampled: Count | None = None
    """Times that one generated image may be served in a run; null is no limit."""
    samples_per_insert: Positive | None = None
    """Times that a generated image is served on average, as with Reverb's rate limiter: with too
    few images real ones are served, with too many the generator pauses (instead of by
    `generation.max_ahead`); null only reports the number."""
    min_inserts: Count = 1
    """Images that must exist before the first is served, with `samples_per_insert`."""
    sampling_tolerance: Positive | None = None
    """Served images by which the average may be missed either way; null is ten times
    `samples_per_insert`, and at least 10."""
    imported: Literal["beside", "only"] | None = None
    """Serve images that `online-aug cache import` brought and whose classes are known: `beside`
    those of the plan, or `only` them, without a generator; null serves none."""

    @property
    def is_synthetic(self) -> bool:
        """Whether generated images are served at all."""
        others = (self.final_probability or 0.0, *self.class_probability.values())
        return max(self.synthetic_probability, *others) > 0
