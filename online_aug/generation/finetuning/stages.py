"""What is learned when: the modes of fine-tuning as a list of stages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from online_aug.config_finetune import FinetuneConfig


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
