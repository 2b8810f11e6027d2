"""The way the generator learns the classes: fine-tuned here, elsewhere, or not at all.

Also what a fine-tuning learns in which order, and what it needs of model and device; nothing here
loads a model.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from online_aug.config.sections import PROMPT, FinetuneConfig
from online_aug.diffusion.adapters import (
    AdapterFiles,
    Adapters,
    Concept,
    check_vectors,
    class_concepts,
    find_adapters,
    is_finetuned,
    named_concepts,
    read_result,
)
from online_aug.diffusion.directory import scheduler_settings, unet_settings
from online_aug.diffusion.import_adapters import import_adapters
from online_aug.diffusion.weights import digest_folder, tensor_shapes
from online_aug.errors import UserError

LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of an attention block that LoRA is added to."""

_AMPERE = (8, 0)
_FLOAT_BYTES = 4
_PREDICTIONS = ("epsilon", "v_prediction")
DECIDES_NOTHING = {
    *("enabled", "path", "gradient_checkpointing", "checkpoint_steps", "validation_steps")
}
"""Settings of `finetune` that leave the result as it is."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Fine-tuning as one experiment uses it.

    Its methods take `result`, the folder where the result of fine-tuning is or will be; None if
    nothing is to be learned.
    """

    config: FinetuneConfig
    is_wanted: bool
    """The experiment's methods use a model that has learned the classes."""
    class_names: Sequence[str]
    metaclass: str
    """The word for all classes together, such as `bird`."""
    template: str = PROMPT
    """Prompt with a place for the class."""

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """Prompts of the classes, and their tokens if fine-tuning learns tokens."""
        has_tokens = self.is_wanted and self.config.mode != "lora"
        naming = class_concepts if has_tokens else named_concepts
        return naming(self.class_names, self.metaclass, self.template)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole fine-tuning."""
        return total_steps(stages_of(self.config, len(self.class_names)))

    @cached_property
    def imported(self) -> AdapterFiles | None:
        """Adapters made elsewhere, if `finetune.path` names some instead of a folder of results."""
        return find_adapters(self.config.path) if self.is_wanted else None

    def result_bytes(self, model: Path) -> int:
        """Estimate the size of what is learned: LoRA matrices, and a row for each class token.

        Raises:
            UserError: If the weights of the model cannot be read.
        """
        mode, numbers = self.config.mode, 0
        if mode != "textual_inversion":
            shapes = tensor_shapes(model / "unet")
            sides = (sum(shape[:2]) for name, shape in shapes.items() if _takes_lora(name))
            numbers += self.config.rank * sum(sides)
        if mode != "lora":
            width = int(unet_settings(model).get("cross_attention_dim") or 0)
            numbers += width * self.config.num_vectors * len(self.class_names)
        return _FLOAT_BYTES * numbers

    def is_ready(self, result: Path | None) -> bool:
        """Tell whether nothing is left to fine-tune."""
        return result is None or self.imported is not None or is_finetuned(result)

    def check(self, model: Path) -> None:
        """Raise if the classes could never be learned or their adapters never be loaded.

        Raises:
            UserError: If the model has no layers for LoRA or predicts something that cannot be
                trained here, adapters made elsewhere do not fit the classes or the model, or a
                token has more vectors than the text encoder reads.
        """
        if self.imported:
            tokens = self._import(self.imported, model).tokens.values()
            most = max((len(rows) for rows in tokens if rows.ndim == 2), default=1)
            check_vectors(model, self.concepts, most, "finetune.path")
        elif self.is_wanted:
            check_prediction(model)
            check_vectors(model, self.concepts, self.config.num_vectors, "finetune.num_vectors")
            if self.config.mode != "textual_inversion":
                check_lora_layers(model, self.config.mode)

    def check_device(self, result: Path | None, device: str) -> None:
        """Raise if a device cannot learn what is left to be learned.

        Raises:
            UserError: If it cannot train in `finetune.dtype`.
        """
        if not self.is_ready(result):
            check_training_dtype(self.config.dtype, device)

    def read(self, result: Path | None, model: Path) -> Adapters | None:
        """Read what is added to the base model; None if nothing is.

        Raises:
            UserError: If adapters made elsewhere do not fit the classes or the model.
        """
        if self.imported:
            return self._import(self.imported, model)
        return read_result(result) if result else None

    def digest(self, result: Path | None) -> str | None:
        """Return the digest of the adapters, hexadecimal; None without adapters."""
        if self.imported:
            return self.imported.digest(self.class_names)
        return digest_folder(result) if result else None

    def _import(self, files: AdapterFiles, model: Path) -> Adapters:
        return import_adapters(files, self.concepts, self.config, model)


def finetuned_folder(
    config: FinetuneConfig,
    model_digest: str,
    images: str,
    settings: Sequence[object],
) -> Path:
    """Return the folder of the result for these images and settings, named by their digest.

    Settings count also at their defaults: if a default changes, earlier results are not taken.

    Args:
        config: Decides the training, and names the folder of all results.
        model_digest: Digest of the base model.
        images: Digest of the training images with their labels.
        settings: Everything else that decides the result: resolution, prompts, flips.
    """
    decides = config.model_dump(mode="json", exclude=DECIDES_NOTHING)
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr([model_digest, sorted(decides.items()), list(settings), images]).encode())
    return config.path / digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive steps that learn the same things, with an optimizer of their own."""

    steps: int
    learns_tokens: bool
    learns_lora: bool
    label: int | None = None
    """Class whose images are drawn; None draws from all classes."""


def stages_of(config: FinetuneConfig, num_classes: int) -> list[Stage]:
    """List the stages that a configuration asks for, in order.

    Diff-Mix (arXiv:2403.19600) learns tokens and LoRA at once and all classes in one run;
    DA-Fusion (arXiv:2302.07944) learns tokens only, in a run for each class.
    """
    if config.mode == "joint":
        return [Stage(steps=config.steps, learns_tokens=True, learns_lora=True)]
    lora = Stage(steps=config.steps, learns_tokens=False, learns_lora=True)
    if config.mode == "lora":
        return [lora]
    labels = range(num_classes) if config.per_class else (None,)
    steps = (config.token_steps or config.steps) if config.mode == "staged" else config.steps
    tokens = [
        Stage(steps=steps, learns_tokens=True, learns_lora=False, label=label) for label in labels
    ]
    return [*tokens, lora] if config.mode == "staged" else tokens


def total_steps(stages: Sequence[Stage]) -> int:
    """Count the optimizer steps of all stages together."""
    return sum(stage.steps for stage in stages)


def steps_from(stages: Sequence[Stage], first: int) -> Iterator[tuple[int, Stage, int]]:
    """Iterate over the steps from number `first` on.

    Yields:
        The number of the step in the run, its stage, and its number in the stage.
    """
    before = 0
    for stage in stages:
        for step in range(max(first - before, 0), stage.steps):
            yield before + step, stage, step
        before += stage.steps


def check_training_dtype(name: str, device: str) -> None:
    """Raise if a device cannot train in a number format.

    Raises:
        UserError: If it has no loss scaling for float16, or no bfloat16.
    """
    if name == "float16" and device == "cpu":
        raise UserError(
            "finetune.dtype must be float32 or bfloat16 on cpu, got 'float16', whose loss scaling "
            "needs a GPU"
        )
    if name == "bfloat16" and device != "cpu" and _capability(device) < _AMPERE:
        raise UserError(
            f"finetune.dtype must be float32 or float16 on {device}, got 'bfloat16', which needs "
            "compute capability 8.0"
        )


def _capability(device: str) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def check_prediction(model: Path) -> None:
    """Raise if a model was trained to predict something other than noise or velocity.

    Raises:
        UserError: If its scheduler says so.
    """
    predicted = scheduler_settings(model).get("prediction_type", "epsilon")
    if predicted not in _PREDICTIONS:
        raise UserError(
            f"generation.model must predict {' or '.join(_PREDICTIONS)} to be fine-tuned, "
            f"got {predicted!r} by the scheduler of {model}; set finetune.enabled=false"
        )


def _takes_lora(name: str) -> bool:
    return name.endswith(tuple(f".{layer}.weight" for layer in LORA_LAYERS))


def check_lora_layers(model: Path, mode: str) -> None:
    """Raise if the U-Net of a model has no attention that LoRA could be added to.

    Raises:
        UserError: If it has none.
    """
    names = tensor_shapes(model / "unet")
    if not any(map(_takes_lora, names)):
        raise UserError(
            "generation.model must have attention in its U-Net for finetune.mode "
            f"{mode}, got {model} without {', '.join(LORA_LAYERS)}; set finetune.enabled=false"
        )
