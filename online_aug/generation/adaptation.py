"""How the generator comes to know the classes: fine-tuned here, elsewhere, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from online_aug.config_finetune import FinetuneConfig
from online_aug.generation.adapter_files import (
    AdapterFiles,
    Adapters,
    find_adapters,
    read_result,
)
from online_aug.generation.concepts import Concept, class_concepts, is_finetuned, named_concepts
from online_aug.generation.finetuning.requirements import check_dtype, check_prediction
from online_aug.generation.finetuning.stages import stages_of, total_steps
from online_aug.generation.identity import digest_folder
from online_aug.generation.importing import import_adapters
from online_aug.generation.lora_names import check_targets


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What fine-tuning means for one recipe; `result` is where its result is, or will be."""

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
