"""The part of the configuration that says what is trained, and how."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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


class RunConfig(Section):
    """The run itself."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run directory; null takes the name of the YAML file and the seed."""
    dir: Path = Path("runs")
    """Folder that holds the run directories."""
    seed: Seed = 0
    """Seed of classifier weights, order, mixing and transforms; never of the generated images."""
    epochs: Count = 20
    """Passes over the training set."""
    resume: bool = True
    """Go on from the newest checkpoint of this run directory where there is one."""
    checkpoint_epochs: Count = 5
    """Epochs between two checkpoints; the last epoch and an interrupt always write one."""
    checkpoint_steps: Count | None = None
    """Optimizer steps between two checkpoints beside these, so that less is lost to a crash."""
    replay: Path | None = None
    """Directory of an earlier run of the same settings: its sequence of images is served again,
    from its ledger and the cache; nothing is generated."""


class CacheConfig(Section):
    """Where generated images are kept."""

    path: Path = Path("runs/cache")
    """Directory of the LMDB cache, shared by runs and seeds."""
    max_gib: Positive | None = None
    """What the images may take of the disk, GiB; null is no limit."""
    eviction: Literal["served", "oldest"] | None = "served"
    """What goes first where `max_gib` is reached: what was served `mixing.max_times_sampled` times
    (once where that is null), then the oldest; the oldest; null keeps all and stops generation."""
    durability: Literal["power", "process"] = "power"
    """What a stored image survives: loss of power, or only the death of any process (faster)."""
    codec: Literal["auto", "webp_lossless", "png", "raw", "webp_lossy", "jpeg"] = "auto"
    """How images are stored. `auto` is `jpeg` where most training images are JPEG files, so that
    real and generated images bear the same traces, else `webp_lossless`. Of the others the first
    three are lossless, the last two leave traces."""


class DevicesConfig(Section):
    """Who computes where."""

    train: Literal["auto"] | Devices = "auto"
    """`auto`, or a list such as `[cuda:0, cuda:1]` or `[cpu, cpu]`: one rank each."""
    generate: Literal["auto", "none"] | Devices = "auto"
    """`auto`, `none` (serve the cache only), a device such as `cuda:1` or `cpu`, or a list of them:
    a process for each."""
    share: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.5
    """What training keeps at least of the speed of a GPU that it shares with a generation process,
    which rests in between; 0 never rests."""

    @model_validator(mode="after")
    def _no_gpu_is_named_twice(self) -> "DevicesConfig":
        for key in ("train", "generate"):
            chosen = getattr(self, key)
            gpus = [name for name in chosen if name != "cpu"] if isinstance(chosen, tuple) else []
            if len(set(gpus)) < len(gpus):
                raise ValueError(f"devices.{key} must name each GPU once, got {', '.join(chosen)}")
        return self


class MixingConfig(Section):
    """How real and synthetic samples share a batch."""

    policy: Literal["global", "local", "concat"] = "global"
    """A synthetic sample takes the place of a real one and comes from the whole pool (`global`,
    Diff-Mix) or is made from that very image (`local`, DA-Fusion); or it is added, and every real
    image is seen as well (`concat`, DiffuseMix)."""
    synthetic_probability: Fraction = 0.3
    """Probability that a slot of the batch takes a synthetic sample, [0, 1]; their share of the
    longer epoch with `concat`."""
    final_probability: Fraction | None = None
    """The same in the last epoch; null keeps it as it is in the first."""
    probability_schedule: Literal["linear", "cosine"] = "linear"
    """How it gets there."""
    class_probability: dict[str, Fraction] = Field(default_factory=dict)
    """Probabilities of classes that have their own in all epochs, by name: of the real image that a
    synthetic sample would replace."""
    starvation: Literal["substitute", "wait"] = "substitute"
    """No synthetic sample ready: serve the real one and count it, or wait for the generator."""
    max_times_sampled: Count | None = None
    """Times one generated image may be served in a run; null is no limit."""
    samples_per_insert: Positive | None = None
    """Times a generated image is served on average, kept like Reverb's rate limiter does: with too
    few images real ones are served, with too many the generator pauses (in place of
    `generation.max_ahead`); null only reports it."""
    min_inserts: Count = 1
    """Images there must be before the first is served, with `samples_per_insert`."""
    sampling_tolerance: Positive | None = None
    """Served images by which the ratio may be missed either way; null is ten times the ratio, and
    at least 10."""
    imported: Literal["beside", "only"] | None = None
    """Serve images that `python -m cache import` brought and that say of which classes they are:
    `beside` those of the plan, or `only` them, without a generator; null serves none."""

    @property
    def is_synthetic(self) -> bool:
        """Whether generated images are served at all."""
        others = (self.final_probability or 0.0, *self.class_probability.values())
        return max(self.synthetic_probability, *others) > 0

    @model_validator(mode="after")
    def _policy_fits(self) -> "MixingConfig":
        changes = self.final_probability is not None or self.class_probability
        if self.policy == "concat" and changes:
            raise ValueError(
                "mixing.final_probability and mixing.class_probability must be left out with "
                "mixing.policy concat, whose epochs have one length"
            )
        if self.samples_per_insert is not None and self.starvation == "wait":
            raise ValueError(
                "mixing.samples_per_insert must be null with mixing.starvation wait, which serves "
                f"every image in its turn, got {self.samples_per_insert:g}"
            )
        ratio, tolerance = self.samples_per_insert, self.sampling_tolerance
        if ratio is not None and tolerance is not None and tolerance < max(1, ratio):
            raise ValueError(
                "mixing.sampling_tolerance must be at least 1 and at least "
                f"mixing.samples_per_insert, got {tolerance:g} for {ratio:g}: both sides would "
                "block one another"
            )
        if self.policy == "concat" and self.synthetic_probability == 1:
            raise ValueError(
                "mixing.synthetic_probability must be below 1 with mixing.policy concat, got 1"
            )
        if self.imported is not None and self.starvation == "wait":
            raise ValueError(
                "mixing.imported must be null with mixing.starvation wait, which serves the plan "
                f"in its order, got {self.imported}"
            )
        waits = self.starvation == "wait" and self.policy != "global"
        if waits and self.max_times_sampled is not None:
            raise ValueError(
                "mixing.max_times_sampled must be null with mixing.starvation wait and "
                f"mixing.policy {self.policy}, got {self.max_times_sampled}"
            )
        return self
