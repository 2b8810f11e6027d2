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
from online_aug.config_method import (
    REPLAY_ALL,
    FractalConfig,
    MethodConfig,
    Methods,
    SaliencyConfig,
)
from online_aug.config_schedule import ScheduleConfig
from online_aug.config_training import ClassifierConfig, OptimConfig
from online_aug.config_types import (
    Count,
    Devices,
    Exponent,
    Fraction,
    Pixels,
    Positive,
    Section,
    Seed,
)

_LCM_STEPS = 50
"""Steps of the solver that consistency models are distilled from (arXiv:2310.04378)."""


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


class GenerationConfig(Section):
    """How images are made."""

    model: str = "embedded"
    """`embedded`, a directory in diffusers' format, or a hub name: Stable Diffusion 1.x or 2.x, or
    InstructPix2Pix for DiffuseMix."""
    revision: str | None = None
    """Revision of a hub name."""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 25
    """Steps of the whole trajectory; `int(steps * strength)` are run."""
    guidance_scale: Annotated[float, Field(ge=1, le=50), Exponent] = 7.5
    """Weight of the prompt in classifier-free guidance; 1 turns guidance off."""
    image_guidance_scale: Annotated[float, Field(ge=1, le=50), Exponent] = 1.5
    """DiffuseMix: weight of the source image in InstructPix2Pix; 1 is no more than trained."""
    scheduler: Literal["dpmsolver++", "ddim", "euler", "euler_ancestral", "lcm"] = "dpmsolver++"
    """Solver of the denoising steps."""
    resolution: Annotated[Pixels, Field(multiple_of=8)] = 512
    """Side of the generated square, px, a multiple of 8."""
    slots: Literal["auto"] | Count = "auto"
    """Images denoised together; `auto` is 8 on a CPU and what fits into half of the free memory, up
    to 16, on a GPU. Where memory runs out all the same, half as many go on."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """Attention kernels; `auto` takes PyTorch's own on a CPU and measures on a GPU."""
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"
    """How the network is called: `graph` records a call and replays it (a CUDA graph on a GPU),
    `compile` is torch.compile, which takes minutes at the start and needs a C++ compiler on a CPU;
    `auto` records on a CPU only."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the generator; `auto` is float32 on a CPU, float16 on a GPU."""
    max_ahead: Count = 256
    """Generated images not yet served at which the generator pauses."""
    variants_per_image: Count = 5
    """Images made from each source (Diff-Mix's multiplier)."""
    seed: Seed = 0
    """Seed of the plan and the noise; part of the request: another seed makes other images."""

    @model_validator(mode="after")
    def _steps_exist(self) -> "GenerationConfig":
        if self.scheduler == "lcm" and self.num_inference_steps > _LCM_STEPS:
            raise ValueError(
                f"generation.num_inference_steps must be at most {_LCM_STEPS} with "
                f"generation.scheduler lcm, got {self.num_inference_steps}"
            )
        return self


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
    codec: Literal["webp_lossless", "png", "raw", "webp_lossy", "jpeg"] = "webp_lossless"
    """How images are stored; the first three are lossless, the last two leave traces."""


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
