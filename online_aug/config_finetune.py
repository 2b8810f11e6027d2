"""The part of the configuration that says how the generator learns the classes."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from online_aug.config_types import Count, Fraction, Positive, Section, Seed


class FinetuneConfig(Section):
    """Fine-tuning of the generator on the training images (Diff-Mix: tokens and LoRA)."""

    enabled: bool = True
    """Fine-tune before training where no result is found; `diffusemix`, `real_guidance` and
    `real_mix` take their model as it is."""
    path: Path = Path("runs/finetuned")
    """Folder of results, one sub-folder for each fingerprint; or a file or folder of adapters made
    elsewhere, used instead: ours, diffusers', Diff-Mix's, DA-Fusion's tokens (`.pt`)."""
    mode: Literal["joint", "textual_inversion", "staged", "lora"] = "joint"
    """What is learned: class tokens and LoRA at once (`joint`, Diff-Mix), tokens only
    (`textual_inversion`, DA-Fusion), tokens and then LoRA (`staged`), or LoRA alone, the prompts
    then hold the class names (`lora`)."""
    per_class: bool = False
    """Learn the tokens in a run for each class (DA-Fusion) instead of one for all (Diff-Mix);
    with `textual_inversion` and `staged` only, for all classes share one LoRA."""
    steps: Count = 2000
    """Optimizer steps; of `staged` those of the LoRA, with `per_class` those of each class."""
    token_steps: Count | None = None
    """Optimizer steps of the tokens in `staged`; null takes `steps`."""
    batch_size: Count = 8
    """Images a step, over all devices together: every GPU of the run learns its part of it."""
    class_balance: Fraction = 0.0
    """An image of a class of n is drawn in proportion to 1 / n^x: 0 draws all images alike, 1 all
    classes alike (Diff-Mix's weighted sampler for long tails)."""
    lr: Positive = 5e-5
    """Learning rate of the LoRA weights."""
    token_lr: Positive = 5e-4
    """Learning rate of the class tokens."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Both learning rates over the steps: as they are (Diff-Mix), or falling to 0."""
    rank: Count = 10
    """Rank of the LoRA matrices."""
    min_snr_gamma: Positive | None = None
    """Weigh noise levels by Min-SNR (arXiv:2303.09556, which takes 5); null weighs all alike, as
    Diff-Mix and DA-Fusion do."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the frozen model; what is learned stays float32. `float16` scales the loss
    and needs a GPU."""
    gradient_checkpointing: bool = False
    """Compute activations twice in place of keeping them: less memory, the same result."""
    seed: Seed = 0
    """Seed of the order, noise and initial LoRA weights."""
    checkpoint_steps: Count = 200
    """Steps between two states from which an interrupted fine-tuning goes on."""
    validation_steps: Count | None = None
    """Steps between two sheets of what the model draws by now, `validation/` beside the result;
    null draws none."""

    @model_validator(mode="after")
    def _classes_share_one_lora(self) -> "FinetuneConfig":
        if self.per_class and self.mode not in ("textual_inversion", "staged"):
            raise ValueError(
                "finetune.per_class must be false unless finetune.mode is textual_inversion or "
                f"staged, got true for {self.mode}: all classes share one LoRA"
            )
        return self
