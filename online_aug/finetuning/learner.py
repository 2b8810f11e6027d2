"""The learner: token embeddings and LoRA in a frozen model, with an optimizer a stage."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from online_aug.config.sections import PLACE, FinetuneConfig, GenerationConfig
from online_aug.diffusion.adaptation import LORA_LAYERS, Stage
from online_aug.diffusion.adapters import CONCEPTS_FILE, TOKENS_FILE, Concept, vector_tokens
from online_aug.diffusion.loading import DTYPES
from online_aug.distributed.world import World, sum_gradients, total
from online_aug.finetuning.validation import draw_validation
from online_aug.seeding import torch_rng

LORA_DECAY = 1e-2
LORA_MAX_NORM = 1.0
TOKEN_SPREAD = 1.0
"""How far apart new tokens start, in standard deviations of the known ones."""


class Learner:
    """The tokens and LoRA that a pipeline learns; it changes the pipeline."""

    def __init__(
        self,
        pipeline: StableDiffusionImg2ImgPipeline,
        concepts: Sequence[Concept],
        config: FinetuneConfig,
        world: World,
    ) -> None:
        """Freeze the model in `finetune.dtype` and add what `finetune.mode` learns in float32."""
        self._pipeline, self._concepts = pipeline, concepts
        self._config, self._world = config, world
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        has_tokens, has_lora = config.mode != "lora", config.mode != "textual_inversion"
        self._tokens = [_add_tokens(pipeline, concepts, config)] if has_tokens else []
        self._lora = _add_lora(pipeline, config.rank, config.seed) if has_lora else []
        self._convert_frozen(DTYPES[config.dtype])
        if config.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        is_scaled = config.dtype == "float16"
        self._scaler = torch.amp.GradScaler(pipeline.device.type, enabled=is_scaled)
        self._optimizer: torch.optim.AdamW | None = None

    def _convert_frozen(self, dtype: torch.dtype) -> None:
        for part in (self._pipeline.unet, self._pipeline.text_encoder):
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)

    def begin(self, stage: Stage) -> None:
        """Begin a stage with a new optimizer of what it learns.

        The token rows of other classes then stay as they are: their gradient is 0 and the optimizer
        has no momentum for them.
        """
        tokens = self._tokens if stage.learns_tokens else []
        lora = self._lora if stage.learns_lora else []
        for parameter in [*self._tokens, *self._lora]:
            parameter.requires_grad_(False)
        for parameter in [*tokens, *lora]:
            parameter.requires_grad_(True)
        groups = [
            {"params": lora, "lr": self._config.lr, "weight_decay": LORA_DECAY},
            {"params": tokens, "lr": self._config.token_lr, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        for group in self._optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def step(
        self, loss_of: Callable[[], Float[Tensor, ""]], rate: float, share: float = 1.0
    ) -> float:
        """Do one optimizer step and return the loss before it, of all ranks together.

        Args:
            loss_of: Computes the mean loss of this rank's images.
            rate: Fraction of the learning rates, [0, 1].
            share: This rank's images as a fraction of those of all ranks.
        """
        assert self._optimizer  # the loop begins a stage before its steps
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"]
        with self._autocast():
            loss = share * loss_of()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        learned = [p for group in self._optimizer.param_groups for p in group["params"]]
        sum_gradients(self._world, learned)
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._lora, LORA_MAX_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return total(self._world, [loss.item()])[0]

    def _autocast(self) -> torch.autocast:
        """Let a frozen model of any number format work with float32 additions."""
        dtype = DTYPES[self._config.dtype]
        return torch.autocast(self._pipeline.device.type, dtype, enabled=dtype is not torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later process needs to go on in this stage: tensors, plain values."""
        assert self._optimizer  # the loop begins a stage before its steps
        return {
            "learned": [parameter.detach() for parameter in [*self._tokens, *self._lora]],
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of another learner, in the same stage."""
        assert self._optimizer
        with torch.no_grad():
            for parameter, saved in zip(
                [*self._tokens, *self._lora], state["learned"], strict=True
            ):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def draw(self, config: GenerationConfig, path: Path) -> None:
        """Write a sheet of images that the model draws by now, and change nothing."""
        with self._autocast():
            draw_validation(self._pipeline, self._concepts, config, path)

    def save(self, folder: Path) -> None:
        """Write the result into an existing folder; the concepts last, which mark it as whole."""
        if self._lora:
            layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self._pipeline.unet))
            self._pipeline.save_lora_weights(
                folder, unet_lora_layers=layers, safe_serialization=True
            )
        for rows in self._tokens:
            embeddings = rows.detach().float().cpu().contiguous()
            save_file({"clip_l": embeddings}, folder / TOKENS_FILE)
        concepts = json.dumps([asdict(concept) for concept in self._concepts], indent=1)
        (folder / CONCEPTS_FILE).write_text(concepts)


class ExtendedEmbedding(nn.Module):
    """A frozen token embedding with trainable rows behind it."""

    def __init__(self, known: nn.Embedding, new: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.known = known
        self.new = nn.Parameter(new.float())

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Look up each id in the frozen table, or in the new rows if it is past the table's end."""
        size = self.known.num_embeddings
        known = self.known(ids.clamp(max=size - 1))
        new = self.new[(ids - size).clamp(min=0)].to(known.dtype)
        return torch.where((ids >= size).unsqueeze(-1), new, known)


def _add_tokens(
    pipeline: StableDiffusionImg2ImgPipeline, concepts: Sequence[Concept], config: FinetuneConfig
) -> nn.Parameter:
    """Add tokens that start around the mean of some words; return their rows, class by class."""
    known = pipeline.text_encoder.get_input_embeddings()
    weights, count = known.weight.detach(), config.num_vectors
    words = [_first_words(concept, config.initializer) for concept in concepts]
    ids = [pipeline.tokenizer(one, add_special_tokens=False).input_ids for one in words]
    start = torch.stack([weights[some].mean(0) for some in ids]).repeat_interleave(count, 0)
    noise = torch.randn(start.shape, generator=torch_rng(config.seed)).to(start)
    tokens = [name for one in concepts for name in vector_tokens(str(one.token), count)]
    pipeline.tokenizer.add_tokens(tokens)
    first = start + TOKEN_SPREAD * weights.std() * noise
    embedding = ExtendedEmbedding(known, first).to(known.weight.device)
    pipeline.text_encoder.set_input_embeddings(embedding)
    return embedding.new


def _first_words(concept: Concept, initializer: str | None) -> str:
    if initializer is not None:
        words = initializer.replace(PLACE, concept.name.replace("_", " "))
    else:
        words = concept.prompt.partition(str(concept.token))[2]
    return words.strip() or "object"


def _add_lora(pipeline: StableDiffusionImg2ImgPipeline, rank: int, seed: int) -> list[nn.Parameter]:
    """Add low-rank matrices to every attention of the U-Net; they have no effect at first."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline.unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=rank,
                init_lora_weights="gaussian",
                target_modules=list(LORA_LAYERS),
            )
        )
    return [p for p in pipeline.unet.parameters() if p.requires_grad]
