"""What the trainer and the generation process agree on: data, model, prompts, plan.

What makes the images of an experiment: base model, autoencoder, what fine-tuning adds.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from online_aug.config import Config
from online_aug.data.image_sets import Splits, file_names_of
from online_aug.diffusion.adaptation import Adaptation, finetuned_folder
from online_aug.diffusion.adapters import Adapters, Concept
from online_aug.diffusion.compatibility import check_attention, check_few_steps, choose_dtype
from online_aug.diffusion.directory import locate_model, locate_vae
from online_aug.diffusion.weights import check_weights, digest_folder, fingerprint
from online_aug.errors import UserError
from online_aug.experiment.contexts import check_methods, shared_context
from online_aug.experiment.images import ImportFinder, Imports, read_image_weights
from online_aug.experiment.saliency import ExperimentSaliency
from online_aug.generation.gate import check_gate
from online_aug.methods import (
    Method,
    MethodContext,
    Part,
    Source,
    make_method,
    plan_requests,
)
from online_aug.methods.base import Resources
from online_aug.request import GenerationRequest
from online_aug.saliency import SaliencyTable


@dataclass(frozen=True)
class ExperimentModel:
    """The generator of one configuration with its data, before any model is loaded."""

    config: Config
    splits: Splits
    device: str
    """Of the generator; decides what `generation.dtype: auto` means."""

    @property
    def is_synthetic(self) -> bool:
        """The run asks for generated images at all."""
        return self.config.mixing.is_synthetic

    @property
    def is_planned(self) -> bool:
        """The run asks for images that a generator makes or has made by its plan."""
        return self.is_synthetic and self.config.mixing.imported != "only"

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The configured methods by their names in requests."""
        made = map(make_method, self.config.methods)
        return {method.name: method for method in made}

    @cached_property
    def model(self) -> Path:
        """Directory of the base model."""
        first, *_ = self.methods.values()  # the others need the same kind
        return locate_model(self.config.generation, first.pipeline)

    @cached_property
    def model_digest(self) -> str:
        """Digest of the base model's content."""
        return digest_folder(self.model)

    @cached_property
    def vae(self) -> Path | None:
        """Directory of the autoencoder in place of the model's own; None where there is none."""
        return locate_vae(self.config.generation.vae, self.model)

    @cached_property
    def dtype(self) -> str:
        """Number format of the generator."""
        return choose_dtype(self.config.generation.dtype, self.device)

    @cached_property
    def sources(self) -> list[Source]:
        """Every training image: digest and label."""
        train = self.splits.train
        return [
            Source(digest=train.digest(index), label=int(label))
            for index, label in enumerate(train.labels)
        ]

    @cached_property
    def adaptation(self) -> Adaptation:
        """How the generator learns the classes."""
        return Adaptation(
            config=self.config.finetune,
            is_wanted=self.config.finetune.enabled
            and self.is_planned
            and any(method.uses_finetuning for method in self.methods.values()),
            class_names=self.splits.train.class_names,
            metaclass=self.config.data.metaclass,
        )

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Prompts of the classes, and their tokens where fine-tuning learns them."""
        return self.adaptation.concepts

    @cached_property
    def finetuned(self) -> Path | None:
        """Where this experiment's fine-tuning result is, or will be; None where there is none."""
        if not self.adaptation.is_wanted:
            return None
        if self.adaptation.imported:
            return self.config.finetune.path
        settings = [
            self.config.generation.resolution,
            self.config.data.hflip,
            *(concept.prompt for concept in self.concepts),
        ]
        examples = [(source.digest, source.label) for source in self.sources]
        return finetuned_folder(self.config.finetune, self.model_digest, examples, settings)

    @property
    def is_ready(self) -> bool:
        """Nothing is left to fine-tune."""
        return self.adaptation.is_ready(self.finetuned)

    @property
    def adapters(self) -> Adapters | None:
        """What is added to the base model, read; None where nothing is."""
        return self.adaptation.read(self.finetuned, self.model)

    @property
    def fingerprint(self) -> str:
        """Digest of the generator; empty where no request is to be made."""
        if not self.is_planned:
            return ""
        adapters = self.adaptation.digest(self.finetuned)
        replaced = digest_folder(self.vae) if self.vae else None
        return fingerprint(self.model_digest, adapters, self.dtype, replaced)


@dataclass(frozen=True)
class Experiment(ExperimentModel):
    """One configuration with its data, before any model is loaded."""

    def check(self, *, generates: bool) -> None:
        """Refuse a generator that could never run, before anything is started or written.

        Args:
            generates: Whether this run makes images, or only serves those in the cache.

        Raises:
            UserError: If several methods cannot share a model, the model is none or of another
                kind, a folder of fractals holds none, a background is to be looked for among more
                images than there are, attention or number format cannot run on the device, solver,
                steps and guidance are not those of a model of few steps, or nothing is to be
                generated and the generator whose images are to be served is not known.
        """
        check_gate(self.config, len(self.splits.train.class_names), self.device)
        if not self.is_synthetic:
            return
        check_methods(
            self.config, self.methods, follows_classifier=self.saliency.follows_classifier
        )
        self.resources  # noqa: B018 - usable, or refused
        self.imports  # noqa: B018 - some fit, or refused
        for method in self.methods.values() if self.is_planned else ():
            method.check_images(len(self.digests))
        if generates:
            check_attention(self.config.generation.attention, self.device)
            check_weights(self.model, self.vae)
            check_few_steps(self.config.generation, self.model)
            self.adaptation.check(self.model)
            self.image_weights  # noqa: B018 - of images there are, or refused
            self.adaptation.check_device(self.finetuned, self.device)
        else:
            self.contexts  # noqa: B018 - complete, or refused

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Of the training images, each once."""
        return tuple(sorted({source.digest for source in self.sources}))

    @cached_property
    def image_weights(self) -> dict[str, float] | None:
        """Of source images by digest, which are varied first; None where no file says.

        Raises:
            UserError: If the file cannot be used.
        """
        path = self.config.schedule.image_weights
        if path is None:
            return None
        digests = [source.digest for source in self.sources]
        return read_image_weights(path, digests, file_names_of(self.splits.train))

    @cached_property
    def saliency(self) -> ExperimentSaliency:
        """Where the foregrounds of the training images are."""
        return ExperimentSaliency(self.config)

    @cached_property
    def places(self) -> dict[str, int]:
        """Where in the training set an image with each digest is."""
        return {source.digest: place for place, source in enumerate(self.sources)}

    @cached_property
    def contexts(self) -> dict[str, MethodContext]:
        """What all requests of a method share, by its name.

        Raises:
            UserError: If fine-tuning is due: the fingerprint is not known before.
        """
        if not self.is_ready:
            raise UserError(
                "finetune.path must hold the result for these images and settings, "
                f"{self.finetuned} is missing; run online-aug finetune first"
            )
        shared = shared_context(
            self.config,
            prompts=tuple(concept.prompt for concept in self.concepts),
            class_sizes=tuple(self.class_sizes),
            generator_fingerprint=self.fingerprint,
            digests=self.digests,
        )
        return {name: replace(shared, resources=self.resources[name]) for name in self.methods}

    @property
    def parts(self) -> dict[str, Part]:
        """The configured methods with their contexts, by name."""
        contexts = self.contexts
        return {
            name: Part(method=method, context=contexts[name])
            for name, method in self.methods.items()
        }

    @property
    def class_sizes(self) -> list[int]:
        """Training images of each class."""
        counts = Counter(source.label for source in self.sources)
        return [counts[label] for label in range(len(self.splits.train.class_names))]

    @cached_property
    def resources(self) -> dict[str, Resources | None]:
        """Files that methods need when images are composed, by method; not yet written.

        Raises:
            UserError: If some cannot be used.
        """
        return {name: method.resources(self.config) for name, method in self.methods.items()}

    @cached_property
    def plan(self) -> list[GenerationRequest]:
        """Every request known at the start, in order; empty where nothing synthetic is served.

        It is empty too where the classifier being trained is to say where the foregrounds are.
        """
        if not self.is_planned or self.saliency.follows_classifier:
            return []
        return self.plan_of(self.saliency.version)

    @cached_property
    def imports(self) -> Imports:
        """The imported images that are served too, or alone.

        Raises:
            UserError: If some are asked for and none fits.
            CacheError: If there is no cache to look for them in.
        """
        if not self.is_synthetic or self.config.mixing.imported is None:
            return Imports()
        return ImportFinder(self.config, self.splits.train, self.sources).find()

    def plan_of(self, version: str | None) -> list[GenerationRequest]:
        """Every request made with the saliency maps of a version, in order."""
        parts = [
            Part(method=method, context=self._context_of(name, version))
            for name, method in self.methods.items()
        ]
        return plan_requests(parts, self.sources, self.config.generation.variants_per_image)

    def context_for(self, request: GenerationRequest) -> MethodContext:
        """What a request shares with others, with the saliency maps it was planned by.

        Raises:
            UserError: If the cache does not hold them.
        """
        return self._context_of(request.method, request.saliency_version)

    def _context_of(self, name: str, version: str | None) -> MethodContext:
        context = self.contexts[name]
        if version is None or not self.methods[name].uses_saliency:
            return context
        if version not in self._tables:
            self._tables[version] = self.saliency.table(version, self.digests)
        return replace(context, saliency=self._tables[version])

    @cached_property
    def _tables(self) -> dict[str, SaliencyTable]:
        return {}

    @property
    def has_maps(self) -> bool:
        """No saliency maps are left to make before the start."""
        return not self.saliency.is_needed or self.saliency.is_complete(self.digests)

    @property
    def plan_is_known(self) -> bool:
        """There is something to generate, and nothing has to be made before it is known what."""
        is_known = self.is_planned and not self.saliency.follows_classifier
        return is_known and self.is_ready and self.has_maps
