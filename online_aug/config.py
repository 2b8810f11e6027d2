"""The configuration: frozen, strict, and the only home of a default.

Every field states its meaning, unit and range; `--help`, the JSON schema beside the YAML files and
the error messages are made from these statements.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from online_aug.config_data import DataConfig
from online_aug.config_finetune import FinetuneConfig
from online_aug.config_gate import GateConfig
from online_aug.config_generation import GenerationConfig
from online_aug.config_method import (
    REPLAY_ALL,
    FractalConfig,
    MethodConfig,
    Methods,
    SaliencyConfig,
)
from online_aug.config_mixing import MixingConfig
from online_aug.config_schedule import ScheduleConfig
from online_aug.config_training import ClassifierConfig, OptimConfig
from online_aug.config_types import (
    Count,
    Devices,
    Exponent,
    Positive,
    Section,
    Seed,
)


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
    hostfile: Path | None = None
    """Train on several machines: a file with a line such as `node-a slots=2` for each, slots the
    training devices it gives. The first is this one, the others are reached by ssh."""
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


class Config(Section):
    """A whole run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    method: Methods = MethodConfig()
    """One method, or a list of them with weights that share the images of a run."""
    mixing: MixingConfig = MixingConfig()
    generation: GenerationConfig = GenerationConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    fractals: FractalConfig = FractalConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    gate: GateConfig = GateConfig()
    cache: CacheConfig = CacheConfig()
    devices: DevicesConfig = DevicesConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    optim: OptimConfig = OptimConfig()

    @property
    def methods(self) -> tuple[MethodConfig, ...]:
        """The configured methods, mostly one."""
        return self.method if isinstance(self.method, tuple) else (self.method,)

    @model_validator(mode="after")
    def _methods_differ(self) -> "Config":
        names = [method.name for method in self.methods]
        if not names:
            raise ValueError("method must be a section or a list of at least 1 such, got []")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"method must list each method once, got {twice} twice")
        if len(names) > 1 and self.mixing.imported is not None:
            raise ValueError(
                "mixing.imported must be null where method lists several: which of them labels an "
                f"imported image is not known, got {self.mixing.imported}"
            )
        return self

    @model_validator(mode="after")
    def _every_strength_runs_a_step(self) -> "Config":
        steps = self.generation.num_inference_steps
        for method in self.methods:
            for strength in () if method.name in REPLAY_ALL else method.strength:
                if int(steps * strength) < 1:
                    raise ValueError(
                        "method.strength * generation.num_inference_steps must be at least 1, "
                        f"got {strength:g} * {steps}"
                    )
        return self

    @model_validator(mode="after")
    def _what_is_waited_for_is_made_in_order(self) -> "Config":
        schedule = self.schedule
        if self.mixing.starvation == "wait" and schedule.priority != "uniform":
            raise ValueError(
                "schedule.priority must be uniform with mixing.starvation wait, which serves the "
                f"plan in its order, got {schedule.priority}"
            )
        if self.mixing.starvation == "wait" and not schedule.helps:
            raise ValueError(
                "schedule.helps must be true with mixing.starvation wait, which needs the whole "
                "plan, got false"
            )
        return self

    @model_validator(mode="after")
    def _imported_stay(self) -> "Config":
        follows = (self.saliency.method, self.saliency.teacher) == ("grad_cam", "classifier")
        names = {method.name for method in self.methods}
        if follows and "sgd_mix" in names and self.mixing.imported == "beside":
            raise ValueError(
                "mixing.imported must be null or only where saliency.teacher is the classifier in "
                "training, whose plans replace one another, got beside"
            )
        return self

    @model_validator(mode="after")
    def _diffusemix_fits(self) -> "Config":
        made = self.generation
        for method in self.methods:
            if method.name != "diffusemix":
                continue
            if made.guidance_scale == 1:  # diffusers would leave the image's guidance out too
                raise ValueError("generation.guidance_scale must be above 1 for diffusemix, got 1")
            prompts = len(method.prompts)
            if method.prompt_choice == "all" and made.variants_per_image % prompts:
                raise ValueError(
                    "generation.variants_per_image must be a multiple of the number of "
                    "method.prompts with method.prompt_choice all, "
                    f"got {made.variants_per_image} for {prompts}"
                )
        return self
