"""The diffusion model of an experiment on disk, and the digest of what decides its pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from online_aug.config import Config
from online_aug.diffusion.adaptation import Adaptation, finetuned_folder
from online_aug.diffusion.adapters import Adapters, Concept, check_prompts
from online_aug.diffusion.compatibility import check_attention, choose_dtype
from online_aug.diffusion.directory import locate_model, locate_vae
from online_aug.diffusion.few_steps import (
    check_few_steps,
    digest_few_step_adapter,
    locate_few_step_adapter,
    read_few_step_adapter,
)
from online_aug.diffusion.schedule_settings import check_schedule
from online_aug.diffusion.weights import (
    check_weights,
    digest_folder,
    digest_model,
    fingerprint,
    locate_unet,
)
from online_aug.experiment.training_data import TrainingData
from online_aug.image_server.identity import server_fingerprint
from online_aug.methods import Method


@dataclass(frozen=True)
class DiffusionFiles:
    """The diffusion model of an experiment on disk: base model, autoencoder, what is fine-tuned."""

    config: Config
    data: TrainingData
    methods: Mapping[str, Method]
    """The methods that generate; all if none does."""
    device: str
    """Device of the generator; it decides what `generation.dtype: auto` means."""

    @cached_property
    def model(self) -> Path:
        """Directory of the base model."""
        first, *_ = self.methods.values()  # the others that generate need the same kind
        return locate_model(self.config.generation, first.pipeline)

    @cached_property
    def model_digest(self) -> str:
        """Digest of the base model's content, with the U-Net that it is used with."""
        return digest_model(self.model, self.unet)

    @cached_property
    def unet(self) -> Path | None:
        """File of weights in the place of those of the model's U-Net; None if there is none."""
        return locate_unet(self.config.generation.unet)

    @cached_property
    def vae(self) -> Path | None:
        """Directory of the autoencoder that replaces the model's own; None if none does."""
        return locate_vae(self.config.generation.vae, self.model)

    @cached_property
    def few_steps(self) -> Path | None:
        """File of the adapter that lets the model do with few steps; None if there is none."""
        return locate_few_step_adapter(self.config.generation.few_step_adapter)

    @cached_property
    def dtype(self) -> str:
        """Number format of the generator."""
        return choose_dtype(self.config.generation.dtype, self.device)

    @cached_property
    def adaptation(self) -> Adaptation:
        """How the generator learns the classes."""
        return Adaptation(
            config=self.config.finetune,
            is_wanted=self.config.finetune.enabled
            and self.config.is_planned
            and any(method.uses_finetuning for method in self.methods.values()),
            class_names=self.data.images.class_names,
            metaclass=self.config.data.metaclass,
            template=self.config.generation.prompt,
        )

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Prompts of the classes, and their tokens if fine-tuning learns them."""
        return self.adaptation.concepts

    @cached_property
    def finetuned(self) -> Path | None:
        """Folder that has, or will have, the result of fine-tuning; None without fine-tuning."""
        if not self.adaptation.is_wanted:
            return None
        if self.adaptation.imported:
            return self.config.finetune.path
        settings = [
            self.config.finetune.resolution or self.config.generation.resolution,
            self.config.data.hflip,
            *(concept.prompt for concept in self.concepts),
        ]
        images = self.data.sources.in_order_of_digests().content_digest()
        return finetuned_folder(self.config.finetune, self.model_digest, images, settings)

    @property
    def is_ready(self) -> bool:
        """Whether nothing is left to fine-tune."""
        return self.adaptation.is_ready(self.finetuned)

    @property
    def adapters(self) -> Adapters | None:
        """The adapters of the base model, read from disk; None if there are none."""
        return self.adaptation.read(self.finetuned, self.model)

    @property
    def fingerprint(self) -> str:
        """Digest of everything here that decides pixels; empty if no request is to be made."""
        if not self.config.is_planned:
            return ""
        if self.config.asks_server:
            return server_fingerprint(self.config)
        adapters = self.adaptation.digest(self.finetuned)
        replaced = digest_folder(self.vae) if self.vae else None
        few_steps = digest_few_step_adapter(self.few_steps) if self.few_steps else None
        return fingerprint(self.model_digest, adapters, self.dtype, replaced, few_steps)

    def check(self) -> None:
        """Refuse a model that could never generate here.

        Raises:
            UserError: If it is incomplete or of another kind, cannot be fine-tuned as configured,
                cannot run on the device, or does not go with solver, steps and guidance.
        """
        if self.config.asks_server:
            return  # it was asked when the configuration was settled
        check_attention(self.config.generation.attention, self.device)
        check_weights(self.model, self.vae, self.unet)
        check_schedule(self.config.generation.scheduler, self.model)
        if self.few_steps:
            read_few_step_adapter(self.few_steps, self.model)
        check_few_steps(self.config.generation, self.model)
        check_prompts(self.model, {one.name: one.prompt for one in self.concepts})
        self.adaptation.check(self.model)
