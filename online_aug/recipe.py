"""What the trainer and the generation process agree on: data, model, prompts, plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.config import Config
from online_aug.dataloader.sources import ImageSet, Splits
from online_aug.errors import UserError
from online_aug.fractals import FractalBank, bank_of
from online_aug.generation.concepts import (
    Concept,
    class_concepts,
    is_finetuned,
    named_concepts,
)
from online_aug.generation.finetuning.stages import stages_of, total_steps
from online_aug.generation.identity import (
    check_attention,
    choose_dtype,
    digest_folder,
    finetuned_folder,
    fingerprint,
    locate,
)
from online_aug.methods import (
    METHODS,
    DiffuseMixSettings,
    Method,
    MethodContext,
    Source,
    plan_requests,
)
from online_aug.records import GenerationRequest

LARGEST_FRACTAL_PX = 256


@dataclass(frozen=True)
class Recipe:
    """One configuration with its data, before any model is loaded."""

    config: Config
    splits: Splits
    device: str
    """Of the generator; decides what `generation.dtype: auto` means."""

    def check(self, *, generates: bool) -> None:
        """Refuse a generator that could never run, before anything is started or written.

        Args:
            generates: Whether this run makes images, or only serves those in the cache.

        Raises:
            UserError: If the model is none or of another kind, a folder of fractals holds none, the
                attention cannot run on the device, or nothing is to be generated and the generator
                whose images are to be served is not known.
        """
        if not self.is_synthetic:
            return
        self.fractals  # noqa: B018 - there are some, or refused
        if generates:
            check_attention(self.config.generation.attention, self.device)
            self.model  # noqa: B018 - found, or refused
        else:
            self.context  # noqa: B018 - complete, or refused

    @property
    def method(self) -> Method:
        """What plans, prepares and composes."""
        return METHODS[self.config.method.name]

    @cached_property
    def model(self) -> Path:
        """Directory of the base model."""
        return locate(self.config.generation, self.method.pipeline)

    @cached_property
    def model_digest(self) -> str:
        """Digest of the base model's content."""
        return digest_folder(self.model)

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
    def places(self) -> dict[str, int]:
        """Where in the training set an image with each digest is."""
        return {source.digest: place for place, source in enumerate(self.sources)}

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """Prompts of the classes, and their tokens where fine-tuning learns them."""
        learns_tokens = self.is_adapted and self.config.finetune.mode != "lora"
        called = class_concepts if learns_tokens else named_concepts
        return called(self.splits.train.class_names, self.config.data.metaclass)

    @property
    def is_adapted(self) -> bool:
        """The generator is fine-tuned for this recipe."""
        return self.config.finetune.enabled and self.method.pipeline != "instruct"

    @cached_property
    def finetuned(self) -> Path | None:
        """Where this recipe's fine-tuning result is, or will be; None where there is none."""
        if not self.is_adapted:
            return None
        settings = [
            self.config.generation.resolution,
            self.config.data.hflip,
            *(concept.prompt for concept in self.concepts),
        ]
        examples = [(source.digest, source.label) for source in self.sources]
        return finetuned_folder(self.config.finetune, self.model_digest, examples, settings)

    @property
    def finetune_steps(self) -> int:
        """Optimizer steps of the whole fine-tuning."""
        return total_steps(stages_of(self.config.finetune, len(self.concepts)))

    @property
    def is_ready(self) -> bool:
        """Nothing is left to fine-tune."""
        return self.finetuned is None or is_finetuned(self.finetuned)

    @cached_property
    def context(self) -> MethodContext:
        """What all requests share.

        Raises:
            UserError: If fine-tuning is due: the fingerprint is not known before.
        """
        if not self.is_ready:
            raise UserError(
                "finetune.path must hold the result for these images and settings, "
                f"{self.finetuned} is missing; run python -m online_aug.finetune first"
            )
        config = self.config
        return MethodContext(
            prompts=tuple(concept.prompt for concept in self.concepts),
            strengths=config.method.strength,
            gamma=config.method.gamma,
            guidance_scale=config.generation.guidance_scale,
            num_inference_steps=config.generation.num_inference_steps,
            scheduler=config.generation.scheduler,
            resolution=config.generation.resolution,
            seed=config.generation.seed,
            generator_fingerprint=fingerprint(self.model_digest, self.finetuned, self.dtype),
            settings=self._settings,
        )

    @cached_property
    def fractals(self) -> FractalBank | None:
        """The pictures DiffuseMix blends in, not yet written; None for another method."""
        if self.config.method.name != "diffusemix":
            return None
        config, resolution = self.config.fractals, self.config.generation.resolution
        return bank_of(config, config.side_px or min(resolution, LARGEST_FRACTAL_PX))

    @property
    def instructions(self) -> dict[str, str]:
        """DiffuseMix's prompts: what the model reads, and the configured word for it."""
        method = self.config.method
        if method.name != "diffusemix":
            return {}
        return {method.template.replace("{prompt}", prompt): prompt for prompt in method.prompts}

    @property
    def _settings(self) -> DiffuseMixSettings | None:
        method = self.config.method
        if self.fractals is None:
            return None
        return DiffuseMixSettings(
            instructions=tuple(self.instructions),
            takes_all=method.prompt_choice == "all",
            image_guidance_scale=self.config.generation.image_guidance_scale,
            masks=method.masks,
            seam=method.seam,
            fractal_weight=method.fractal_weight,
            fractals=self.fractals,
        )

    @cached_property
    def plan(self) -> list[GenerationRequest]:
        """Every request, in order; empty where the run serves no synthetic image."""
        if not self.is_synthetic:
            return []
        variants = self.config.generation.variants_per_image
        return plan_requests(self.method, self.sources, self.context, variants)

    @property
    def is_synthetic(self) -> bool:
        """The run asks for generated images at all."""
        return self.config.mixing.synthetic_probability > 0


@dataclass(frozen=True)
class BoundCompose:
    """Every request's own method, with one recipe's context; pickles to worker processes."""

    context: MethodContext

    def __call__(
        self,
        source: Callable[[], UInt8[np.ndarray, "h w 3"]],
        generated: UInt8[np.ndarray, "h2 w2 3"],
        request: GenerationRequest,
        rng: np.random.Generator,
    ) -> tuple[UInt8[np.ndarray, "h3 w3 3"], Float[Tensor, " k"]]:
        """Image and soft label of one synthetic sample."""
        return METHODS[request.method].compose(source, generated, request, self.context, rng)


class SourceImages:
    """Training images by digest, as tensors."""

    def __init__(self, images: ImageSet, sources: Sequence[Source]) -> None:
        self._images = images
        self._places = {source.digest: place for place, source in enumerate(sources)}

    def by_digest(self, digest: str) -> UInt8[Tensor, "3 h w"]:
        """The image with this content.

        Raises:
            BadImageError: If it cannot be read any more.
        """
        return self.by_index(self._places[digest])

    def by_index(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The image at this place of the training set."""
        return torch.from_numpy(self._images.load(index).copy()).permute(2, 0, 1)
