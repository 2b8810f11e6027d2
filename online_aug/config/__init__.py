"""The configuration: frozen, strict, and the only home of a default.

Every field states its meaning, unit and range; `--help`, the JSON schema beside the YAML files and
the error messages are made from these statements.
"""

from pydantic import model_validator

from online_aug.config.generation import (
    FinetuneConfig,
    GateConfig,
    GenerationConfig,
    ScheduleConfig,
)
from online_aug.config.methods import REPLAY_ALL, MethodConfig, Methods, SaliencyConfig
from online_aug.config.mixing import MixingConfig
from online_aug.config.training import (
    CacheConfig,
    ClassifierConfig,
    DevicesConfig,
    OptimConfig,
    RunConfig,
)
from online_aug.data.settings import DataConfig
from online_aug.methods.fractals import FractalConfig
from online_aug.settings import Section


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
