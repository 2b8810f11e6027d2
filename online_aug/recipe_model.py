"""What makes the images of a recipe: base model, autoencoder, what fine-tuning adds."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from online_aug.config import Config
from online_aug.dataloader.sources import Splits
from online_aug.generation.adaptation import Adaptation
from online_aug.generation.adapter_files import Adapters
from online_aug.generation.concepts import Concept
from online_aug.generation.identity import (
    choose_dtype,
    digest_folder,
    finetuned_folder,
    fingerprint,
    locate,
)
from online_aug.generation.vae_files import locate_vae
from online_aug.methods import METHODS, Method, Source


@dataclass(frozen=True)
class RecipeModel:
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

    @property
    def methods(self) -> dict[str, Method]:
        """What plans, prepares and composes, by name."""
        return {method.name: METHODS[method.name] for method in self.config.methods}

    @cached_property
    def model(self) -> Path:
        """Directory of the base model."""
        first, *_ = self.methods.values()  # the others need the same kind
        return locate(self.config.generation, first.pipeline)

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
        """Where this recipe's fine-tuning result is, or will be; None where there is none."""
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
