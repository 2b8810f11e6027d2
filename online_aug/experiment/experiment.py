"""An experiment: one configuration with its data, the same for trainer and generation process.

An `Experiment` is put together from its training data, the diffusion model on disk, the saliency
maps and the methods with their contexts; out of these comes the plan. No model is loaded.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from cache import check_usable
from online_aug.classifier.class_names import check_class_names
from online_aug.config import Config
from online_aug.data.image_sets import Splits, file_names_of
from online_aug.errors import UserError
from online_aug.experiment.diffusion_files import DiffusionFiles
from online_aug.experiment.images import ImportFinder, Imports
from online_aug.experiment.judge import OwnJudge
from online_aug.experiment.saliency import ExperimentSaliency
from online_aug.experiment.strengths import ExperimentStrengths
from online_aug.experiment.training_data import TrainingData, read_image_weights
from online_aug.generation.gate import check_gate, gate_version
from online_aug.methods import (
    Method,
    MethodContext,
    Part,
    make_method,
)
from online_aug.methods.base import Resources
from online_aug.planning import ListedRequests, Plan, Requests
from online_aug.request import GenerationRequest
from online_aug.saliency import SaliencyTable
from online_aug.settings import decided


@dataclass(frozen=True)
class Experiment:
    """One configuration with its data, before any model is loaded."""

    config: Config
    splits: Splits
    device: str
    """Device of the generator."""
    only_trials: bool = False
    """Whether only those requests are planned whose images decide strengths."""

    @cached_property
    def data(self) -> TrainingData:
        """The training images."""
        return TrainingData(self.config.data.source, self.splits.train)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The configured methods, by their names in requests."""
        made = map(make_method, self.config.methods)
        return {method.name: method for method in made}

    @cached_property
    def diffusion(self) -> DiffusionFiles:
        """The diffusion model on disk."""
        users = {name: method for name, method in self.methods.items() if method.generates}
        return DiffusionFiles(self.config, self.data, users or self.methods, self.device)

    @cached_property
    def saliency(self) -> ExperimentSaliency:
        """The foregrounds of the training images."""
        return ExperimentSaliency(self)

    @cached_property
    def judge(self) -> OwnJudge:
        """The judge that is trained before images are made, if the gate asks for one."""
        return OwnJudge(self)

    @cached_property
    def strengths(self) -> ExperimentStrengths:
        """The strengths that are learned from trials."""
        return ExperimentStrengths(self)

    @property
    def is_synthetic(self) -> bool:
        """Whether the run serves synthetic images at all."""
        return self.config.mixing.is_synthetic

    @property
    def has_maps(self) -> bool:
        """Whether no saliency maps are left to make before the start."""
        return not self.saliency.is_needed or self.saliency.is_complete(self.data.digests)

    @property
    def plan_is_known(self) -> bool:
        """Whether there is a plan and nothing has to be made before it is known."""
        is_fixed = self.config.is_planned and not self.saliency.follows_classifier
        return is_fixed and self.is_prepared and self.strengths.are_known

    @property
    def is_prepared(self) -> bool:
        """Whether fine-tuned model, judge and foregrounds are there, as far as they are needed."""
        return self.diffusion.is_ready and self.judge.is_ready and self.has_maps

    def check(self, *, generates: bool) -> None:
        """Refuse an experiment that could never run, before anything is started or written.

        Args:
            generates: Whether this run makes images, or only serves those in the cache.

        Raises:
            UserError: If the gate cannot judge, methods lack their files, imported images or
                weights of images do not fit, the diffusion model cannot generate, or nothing is to
                be generated and the model whose images are to be served is not known.
        """
        check_usable(self.config.cache.path)
        names = self.splits.train.class_names
        if self.config.gate.weights is not None:
            check_class_names(self.config.gate.weights, "gate.classifier", names)
        if self.saliency.is_needed and self.saliency.weights is not None:
            check_class_names(self.saliency.weights, "saliency.teacher", names)
        check_gate(self.config, len(names), self.device)
        self.judge.check()
        if not self.is_synthetic:
            return
        self.resources  # noqa: B018 - usable, or refused
        self.imports  # noqa: B018 - some fit, or refused
        if self.config.mixing.imported != "only":
            for method in self.methods.values():
                method.check_images(len(self.data.digests))
        if generates:
            self.diffusion.check()
            self.image_weights  # noqa: B018 - of images there are, or refused
            self.diffusion.adaptation.check_device(self.diffusion.finetuned, self.device)
        else:
            self.contexts  # noqa: B018 - complete, or refused
            for part in self.parts.values():
                self.strengths.applied(part)  # known, or refused

    @cached_property
    def resources(self) -> dict[str, Resources | None]:
        """Files that methods need when images are composed, by method; not yet written.

        Raises:
            UserError: If some cannot be used.
        """
        return {name: method.resources(self.config) for name, method in self.methods.items()}

    def write_resources(self) -> None:
        """Write the files that methods need when images are composed, if they are not there."""
        for needed in self.resources.values() if self.is_synthetic else ():
            if needed is not None:
                needed.ensure()

    @cached_property
    def imports(self) -> Imports:
        """Imported images that are served too, or alone.

        Raises:
            UserError: If some are asked for and none fits.
            CacheError: If there is no cache to look for them in.
        """
        if not self.is_synthetic or self.config.mixing.imported is None:
            return Imports()
        return ImportFinder(self.config, self.splits, self.data.sources).find()

    @cached_property
    def image_weights(self) -> dict[str, float] | None:
        """How much earlier each source image is varied, by digest; None if no file says.

        Raises:
            UserError: If the file cannot be used.
        """
        path = self.config.schedule.image_weights
        if path is None:
            return None
        files = file_names_of(self.splits.train)
        return read_image_weights(path, self.data.sources.digests, files)

    @cached_property
    def contexts(self) -> dict[str, MethodContext]:
        """Context that all requests of a method share, by the method's name.

        Raises:
            UserError: If fine-tuning or the judge's training is due, as their digests are not known
                before, or the file of the judge's weights cannot be read.
        """
        if not self.diffusion.is_ready:
            raise UserError(
                "finetune.path must hold the result for these images and settings, "
                f"{self.diffusion.finetuned} is missing; run online-aug finetune first"
            )
        made = self.config.generation
        shared = MethodContext(
            prompts=tuple(concept.prompt for concept in self.diffusion.concepts),
            class_sizes=tuple(self.data.class_sizes),
            guidance_scale=made.guidance_scale,
            image_guidance_scale=made.image_guidance_scale,
            num_inference_steps=decided(made.num_inference_steps),
            scheduler=made.scheduler,
            resolution=decided(made.resolution),
            seed=made.seed,
            generator_fingerprint=self.diffusion.fingerprint,
            gate_version=gate_version(self.judge.named_in(self.config), self.data.digests),
        )
        return {name: replace(shared, resources=self.resources[name]) for name in self.methods}

    @property
    def parts(self) -> dict[str, Part]:
        """The configured methods with their contexts, by name."""
        return {name: self._part(name, None) for name in self.methods}

    def parts_by(self, version: str | None) -> list[Part]:
        """Return the configured methods with their contexts and the saliency maps of a version."""
        return [self._part(name, version) for name in self.methods]

    @cached_property
    def plan(self) -> Requests:
        """Every request known at the start, in order; empty if nothing generated is served.

        It is also empty if the saliency maps come from the classifier being trained.
        """
        if not self.config.is_planned or self.saliency.follows_classifier:
            return ListedRequests([])
        return self.plan_of(self.saliency.version)

    def plan_of(self, version: str | None) -> Requests:
        """Return every request made with the saliency maps of a version, in order."""
        generating = [part for part in self.parts_by(version) if part.method.generates]
        plan = Plan(
            [self.strengths.applied(part) for part in generating],
            self.data.distinct,
            self.config.generation.variants_per_image,
        )
        return plan.trials() if self.only_trials else plan

    def context_for(self, request: GenerationRequest) -> MethodContext:
        """Return the context of a request, with the saliency maps it was planned by.

        Raises:
            UserError: If the cache does not hold these maps.
        """
        return self._part(request.method, request.saliency_version).context

    def _part(self, name: str, version: str | None) -> Part:
        method, context = self.methods[name], self.contexts[name]
        if method.needs_saliency and not method.uses_saliency:  # whatever the plan is
            version = self.saliency.version
        if version is not None and method.needs_saliency:
            if version not in self._tables:
                self._tables[version] = self.saliency.table(version, self.data.digests)
            context = replace(context, saliency=self._tables[version])
        return Part(method=method, context=context)

    @cached_property
    def _tables(self) -> dict[str, SaliencyTable]:
        return {}
