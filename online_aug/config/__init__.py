"""The configuration: frozen, strict, and the only place of a default.

Every key has a docstring with its meaning, unit and range; `--help`, the JSON schema and the error
lines are made from them. The keys of a method are in the file of the method.
"""

from pydantic import model_validator

from online_aug.config.generation import (
    FinetuneConfig,
    GateConfig,
    GenerationConfig,
    SaliencyConfig,
    ScheduleConfig,
)
from online_aug.config.training import (
    CacheConfig,
    ClassifierConfig,
    DevicesConfig,
    MixingConfig,
    OptimConfig,
    RunConfig,
)
from online_aug.data.settings import DataConfig
from online_aug.methods import METHODS, MethodSettings, find_method, make_method
from online_aug.methods.fractals import FractalConfig
from online_aug.methods.registry import DEFAULT, MethodSection
from online_aug.settings import Section


class Config(Section):
    """All sections of a run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    method: MethodSection = METHODS[DEFAULT].Settings(name=DEFAULT)
    """One method, or a list of methods that share the images of a run by their weights."""
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
    def methods(self) -> tuple[MethodSettings, ...]:
        """The settings of the configured methods, mostly of one."""
        return self.method if isinstance(self.method, tuple) else (self.method,)

    @model_validator(mode="after")
    def _methods_differ(self) -> "Config":
        names = [make_method(settings).name for settings in self.methods]
        if not names:
            raise ValueError("method must be a section or a list of at least 1 such, got []")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"method must list each method once, got {twice} twice")
        if len(names) > 1 and self.mixing.imported is not None:
            raise ValueError(
                "mixing.imported must be null if method lists several: which of them labels an "
                f"imported image is not known, got {self.mixing.imported}"
            )
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> "Config":
        for settings in self.methods:
            make_method(settings).check(self)
        return self

    @model_validator(mode="after")
    def _wait_serves_the_plan_in_order(self) -> "Config":
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
    def _imported_images_have_one_plan(self) -> "Config":
        follows = (self.saliency.method, self.saliency.teacher) == ("grad_cam", "classifier")
        uses_saliency = any(find_method(settings.name).uses_saliency for settings in self.methods)
        if follows and uses_saliency and self.mixing.imported == "beside":
            raise ValueError(
                "mixing.imported must be null or only if saliency.teacher is the classifier in "
                "training, whose plans replace one another, got beside"
            )
        return self
