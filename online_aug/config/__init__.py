"""The configuration: frozen, strict, and the only place of a default.

Every key has a docstring with its meaning, unit and range; `--help`, the JSON schema and the error
lines are made from them. The keys of a method are in the file of the method.
"""

from collections.abc import Iterator

from pydantic import model_validator

from online_aug.config.gate import GateConfig
from online_aug.config.image_server import ImageServerConfig, server_rules
from online_aug.config.mixing_rules import mixing_rules
from online_aug.config.saliency import SaliencyConfig
from online_aug.config.sections import (
    PLACE,
    CacheConfig,
    DevicesConfig,
    FinetuneConfig,
    GenerationConfig,
    MixingConfig,
    RunConfig,
    ScheduleConfig,
)
from online_aug.config.training import ClassifierConfig, OptimConfig, training_rules
from online_aug.data.settings import DataConfig
from online_aug.methods import METHODS, MethodSettings, find_method, make_method
from online_aug.methods.fractals import FractalConfig
from online_aug.methods.registry import DEFAULT, MethodSection
from online_aug.methods.strengths import LCM_STEPS
from online_aug.settings import Section


class Config(Section):
    """All sections of a run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    method: MethodSection = METHODS[DEFAULT].Settings(name=DEFAULT)
    """One method, or a list of methods that share the images of a run by their weights."""
    mixing: MixingConfig = MixingConfig()
    generation: GenerationConfig = GenerationConfig()
    image_server: ImageServerConfig = ImageServerConfig()
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

    @property
    def plans_follow_classifier(self) -> bool:
        """Whether a method plans by maps of the classifier in training."""
        uses = any(find_method(settings.name).uses_saliency for settings in self.methods)
        return uses and self.saliency.follows_classifier

    @property
    def is_planned(self) -> bool:
        """Whether a run serves images that a generator makes, or has made, by its plan."""
        return self._is_mixed and any(find_method(each.name).generates for each in self.methods)

    @property
    def is_composed(self) -> bool:
        """Whether a run serves images that methods compose without a generator."""
        return self._is_mixed and not all(find_method(each.name).generates for each in self.methods)

    @property
    def _is_mixed(self) -> bool:
        return self.mixing.is_synthetic and self.mixing.imported != "only"

    @property
    def uses_saliency(self) -> bool:
        """Whether a method of the run looks at the foregrounds of the training images."""
        return self._is_mixed and any(make_method(each).needs_saliency for each in self.methods)

    @property
    def uses_diffusion(self) -> bool:
        """Whether a run needs a diffusion model, for images or for foregrounds."""
        looks = self.uses_saliency and self.saliency.chosen_method == "diffusion"
        return self.is_planned or looks

    @property
    def needs_generator(self) -> bool:
        """Whether a run makes images, instead of serving those there are or none."""
        return self.is_planned and self.run.replay is None

    @property
    def asks_server(self) -> bool:
        """Whether an image server makes the images."""
        return self.is_planned and self.generation.engine == "openai"

    @property
    def wished_devices(self) -> DevicesConfig:
        """The devices asked for; where a server makes the images, `auto` leaves all GPUs free."""
        if not self.asks_server or self.devices.generate != "auto":
            return self.devices
        return self.devices.model_copy(update={"generate": ("cpu",)})

    @model_validator(mode="after")
    def _rules_hold(self) -> "Config":
        rules = (
            *(_data, mixing_rules, _generation, _prompt, _schedule, _finetune, _saliency, _devices),
            *(_methods, _adaptive, _shared_run, _imports, _composed, server_rules),
            training_rules,
        )
        if lines := [line for rule in rules for line in rule(self)]:
            raise ValueError("\n".join(lines))
        return self


# The rules between keys: each yields a line for what is broken.


def _data(config: Config) -> Iterator[str]:
    data = config.data
    for name, (low, high) in (("scale", data.scale), ("crop_area", data.crop_area)):
        if low > high:
            yield f"data.{name} must be smallest then largest, got {[low, high]}"
    if data.resize_px is not None and data.resize_px < data.image_size:
        yield (
            f"data.resize_px must be at least data.image_size, got {data.resize_px} "
            f"for {data.image_size}"
        )
    if data.many_few[0] < data.many_few[1]:
        yield f"data.many_few must be many then few, got {list(data.many_few)}"
    if data.val_fraction + data.test_fraction >= 1:
        yield (
            "data.val_fraction + data.test_fraction must be below 1, got "
            f"{data.val_fraction} + {data.test_fraction}: nothing is left to train on"
        )


def _generation(config: Config) -> Iterator[str]:
    steps = config.generation.num_inference_steps
    if config.generation.scheduler == "lcm" and steps is not None and steps > LCM_STEPS:
        yield (
            f"generation.num_inference_steps must be at most {LCM_STEPS} with "
            f"generation.scheduler lcm, got {steps}"
        )
    if config.generation.few_step_adapter and config.generation.scheduler != "lcm":
        yield (
            "generation.scheduler must be lcm with generation.few_step_adapter, got "
            f"{config.generation.scheduler}"
        )


def _prompt(config: Config) -> Iterator[str]:
    learns = [s.name for s in config.methods if find_method(s.name).uses_finetuning]
    if learns and config.finetune.enabled and PLACE not in config.generation.prompt:
        yield (
            f"generation.prompt must hold {PLACE} with {learns[0]}, for which the model learns the "
            f"classes by it, got {config.generation.prompt!r}; finetune.enabled=false takes the "
            "model as it is"
        )


def _schedule(config: Config) -> Iterator[str]:
    schedule = config.schedule
    if schedule.image_weights is not None and schedule.priority != "uniform":
        yield (
            "schedule.priority must be uniform if schedule.image_weights is given, got "
            f"{schedule.priority}"
        )
    if schedule.stripe >= schedule.stripes:
        yield (
            f"schedule.stripe must be below schedule.stripes, got {schedule.stripe} of "
            f"{schedule.stripes}"
        )


def _finetune(config: Config) -> Iterator[str]:
    finetune = config.finetune
    if finetune.mode == "lora" and (finetune.num_vectors > 1 or finetune.initializer is not None):
        yield (
            "finetune.num_vectors and finetune.initializer must be left out with finetune.mode "
            "lora, which learns no tokens"
        )
    if finetune.per_class and finetune.mode not in ("textual_inversion", "staged"):
        yield (
            "finetune.per_class must be false unless finetune.mode is textual_inversion or "
            f"staged, got true for {finetune.mode}: all classes share one LoRA"
        )


def _saliency(config: Config) -> Iterator[str]:
    saliency = config.saliency
    has_masks = saliency.masks is not None or config.data.source == "pocket_birds"
    if saliency.chosen_method == "masks" and not has_masks:
        yield (
            "saliency.masks must be a folder with saliency.method masks, got null, which "
            "pocket_birds alone allows"
        )
    methods = [make_method(settings) for settings in config.methods]
    for method in methods:
        if saliency.follows_classifier and method.needs_saliency and not method.uses_saliency:
            yield (
                "saliency.teacher must be a file of weights, or saliency.method one that needs no "
                f"training, for the parts that {method.name} keeps, got the classifier in training"
            )
    if saliency.chosen_method == "segmenter" and saliency.segmenter is None:
        yield (
            "saliency.segmenter must be a directory, a hub name or an ONNX file with "
            "saliency.method segmenter, got null"
        )


def _devices(config: Config) -> Iterator[str]:
    for key in ("train", "generate"):
        chosen = getattr(config.devices, key)
        gpus = [name for name in chosen if name != "cpu"] if isinstance(chosen, tuple) else []
        if len(set(gpus)) < len(gpus):
            yield f"devices.{key} must name each GPU once, got {', '.join(chosen)}"


def _methods(config: Config) -> Iterator[str]:
    methods = [make_method(settings) for settings in config.methods]
    names = [method.name for method in methods]
    if not names:
        yield "method must be a section or a list of at least 1 such, got []"
    if twice := next((name for name in names if names.count(name) > 1), None):
        yield f"method must list each method once, got {twice} twice"
    for method in methods:
        try:
            method.check(config)
        except ValueError as error:
            yield str(error)


def _adaptive(config: Config) -> Iterator[str]:
    learns = [s.name for s in config.methods if getattr(s, "is_adaptive", False)]
    if learns and config.gate.classifier is None:
        yield (
            "gate.classifier must be self or a file of weights with method.strength adaptive, "
            "which learns from what the gate accepts, got null"
        )
    if learns and config.plans_follow_classifier:
        yield (
            "saliency.teacher must be a file of weights, or saliency.method one that needs no "
            f"training, with method.strength adaptive of {learns[0]}, got the classifier in "
            "training"
        )


def _shared_run(config: Config) -> Iterator[str]:
    methods = [find_method(settings.name) for settings in config.methods]
    if len(methods) < 2 or not config.mixing.is_synthetic:
        return
    if config.mixing.imported != "only" and config.plans_follow_classifier:
        yield (
            "saliency.teacher must be a file of weights, or saliency.method one that needs no "
            "training, if method lists several, got the classifier in training"
        )
    named = [(settings.name, find_method(settings.name)) for settings in config.methods]
    (first_name, first), *others = [(n, m) for n, m in named if m.generates] or named
    for name, method in others:
        if method.pipeline != first.pipeline:
            yield (
                "method must list methods for one kind of model, got "
                f"{first_name} ({first.pipeline}) and {name} ({method.pipeline})"
            )
        elif config.finetune.enabled and method.uses_finetuning != first.uses_finetuning:
            learned, plain = (first_name, name) if first.uses_finetuning else (name, first_name)
            yield (
                "method must list methods for one model, got "
                f"{learned}, which fine-tunes it, and {plain}, which takes it as it is; "
                "finetune.enabled=false takes it so for both"
            )


def _imports(config: Config) -> Iterator[str]:
    imported = config.mixing.imported
    if len(config.methods) > 1 and imported is not None:
        yield (
            "mixing.imported must be null if method lists several: which of them labels an "
            f"imported image is not known, got {imported}"
        )
    if imported == "beside" and config.plans_follow_classifier:
        yield (
            "mixing.imported must be null or only if saliency.teacher is the classifier in "
            "training, whose plans replace one another, got beside"
        )


def _composed(config: Config) -> Iterator[str]:
    methods = {settings.name: find_method(settings.name) for settings in config.methods}
    composing = {name: method for name, method in methods.items() if not method.generates}
    looking = [name for name, method in composing.items() if method.uses_saliency]
    if looking and len(methods) == 1 and config.plans_follow_classifier:  # else told already
        yield (
            "saliency.teacher must be a file of weights, or saliency.method one that needs no "
            f"training, for {looking[0]}, which composes from the first epoch on, got the "
            "classifier in training"
        )
    if composing and len(composing) == len(methods):
        named = ", ".join(composing)
        for key, allowed, value in _of_generated_images(config):
            yield f"{key} must be {allowed} with {named}, which needs no generator, got {value}"


def _of_generated_images(config: Config) -> Iterator[tuple[str, str, object]]:
    """Yield keys that are set but say nothing without a generator, what they may be, and are."""
    devices, mixing, schedule, gate = config.devices, config.mixing, config.schedule, config.gate
    if isinstance(devices.generate, tuple):
        yield "devices.generate", "auto or none", ", ".join(devices.generate)
    for name in ("max_times_sampled", "samples_per_insert", "imported"):
        if (value := getattr(mixing, name)) is not None:
            yield f"mixing.{name}", "null", value
    if schedule.priority != "uniform":
        yield "schedule.priority", "uniform", schedule.priority
    for key, path in (
        ("schedule.image_weights", schedule.image_weights),
        ("gate.classifier", gate.classifier),
        ("gate.clip", gate.clip),
    ):
        if path is not None:
            yield key, "null", path
