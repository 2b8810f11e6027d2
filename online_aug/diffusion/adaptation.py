"""How the generator comes to know the classes: fine-tuned here, elsewhere, or not at all.

What a device and a model must have for fine-tuning, told before either is used.

What is learned when: the modes of fine-tuning as a list of stages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from online_aug.config.generation import FinetuneConfig
from online_aug.diffusion.adapters import (
    AdapterFiles,
    Adapters,
    Concept,
    class_concepts,
    find_adapters,
    is_finetuned,
    named_concepts,
    read_result,
)
from online_aug.diffusion.directory import scheduler_settings
from online_aug.diffusion.fingerprint import digest_folder
from online_aug.diffusion.import_adapters import check_targets, import_adapters
from online_aug.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What fine-tuning means for one experiment; `result` is where its result is, or will be."""

    config: FinetuneConfig
    is_wanted: bool
    class_names: Sequence[str]
    metaclass: str

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """Prompts of the classes, and their tokens where fine-tuning learns them."""
        has_tokens = self.is_wanted and self.config.mode != "lora"
        called = class_concepts if has_tokens else named_concepts
        return called(self.class_names, self.metaclass)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole fine-tuning."""
        return total_steps(stages_of(self.config, len(self.class_names)))

    @cached_property
    def imported(self) -> AdapterFiles | None:
        """Adapters made elsewhere, which `finetune.path` names in place of a folder of results."""
        return find_adapters(self.config.path) if self.is_wanted else None

    def is_ready(self, result: Path | None) -> bool:
        """Nothing is left to fine-tune."""
        return result is None or self.imported is not None or is_finetuned(result)

    def check(self, model: Path) -> None:
        """Refuse what could never be learned or loaded.

        Raises:
            UserError: If the model has nothing to add LoRA to or predicts something that cannot be
                trained here, or adapters made elsewhere do not fit the classes or the model.
        """
        if self.imported:
            self._import(self.imported, model)
        elif self.is_wanted:
            check_prediction(model)
            if self.config.mode != "textual_inversion":
                check_targets(model, self.config.mode)

    def check_device(self, result: Path | None, device: str) -> None:
        """Refuse a device that cannot learn what is left to be learned.

        Raises:
            UserError: If it has not the number format that training is to use.
        """
        if not self.is_ready(result):
            check_dtype(self.config.dtype, device)

    def read(self, result: Path | None, model: Path) -> Adapters | None:
        """What is added to the base model; None where nothing is.

        Raises:
            UserError: If adapters made elsewhere do not fit the classes or the model.
        """
        if self.imported:
            return self._import(self.imported, model)
        return read_result(result) if result else None

    def digest(self, result: Path | None) -> str | None:
        """Of the adapters, hexadecimal; None where there are none."""
        if self.imported:
            return self.imported.digest(self.class_names)
        return digest_folder(result) if result else None

    def _import(self, files: AdapterFiles, model: Path) -> Adapters:
        return import_adapters(files, self.concepts, self.config.mode, model)


_AMPERE = (8, 0)
_PREDICTIONS = ("epsilon", "v_prediction")


def check_dtype(name: str, device: str) -> None:
    """Refuse a number format that the device cannot train in.

    Raises:
        UserError: If there is no loss scaling for float16, or no bfloat16.
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


def check_prediction(model: Path) -> None:
    """Refuse a model that was trained to predict something else than noise or velocity.

    Raises:
        UserError: If its scheduler says so.
    """
    said = scheduler_settings(model).get("prediction_type", "epsilon")
    if said not in _PREDICTIONS:
        raise UserError(
            f"generation.model must predict {' or '.join(_PREDICTIONS)} to be fine-tuned, "
            f"got {said!r} by the scheduler of {model}; set finetune.enabled=false"
        )


def _capability(device: str) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps that learn the same from the same images, with an optimizer of their own."""

    steps: int
    learns_tokens: bool
    learns_lora: bool
    label: int | None = None
    """Class whose images are drawn; None draws from all."""


def stages_of(config: FinetuneConfig, num_classes: int) -> list[Stage]:
    """The stages of a configuration, in order.

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
    """Optimizer steps of all stages together."""
    return sum(stage.steps for stage in stages)


def steps_from(stages: Sequence[Stage], first: int) -> Iterator[tuple[int, Stage, int]]:
    """Every step from `first` on: its number in the run, its stage, its number in the stage."""
    before = 0
    for stage in stages:
        for step in range(max(first - before, 0), stage.steps):
            yield before + step, stage, step
        before += stage.steps
