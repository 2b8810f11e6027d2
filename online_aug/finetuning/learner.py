"""The learned additions of one model and the optimizer that changes them, stage by stage.

What is put into a frozen model to be learned: rows of the token embedding, LoRA matrices.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn

from online_aug.config.generation import FinetuneConfig, GenerationConfig
from online_aug.diffusion.adaptation import Stage
from online_aug.diffusion.adapters import Concept, save_adapters
from online_aug.diffusion.import_adapters import TARGETS
from online_aug.diffusion.loading import DTYPES
from online_aug.distributed.world import World, sum_gradients, total
from online_aug.finetuning.validation import draw_validation
from online_aug.seeding import torch_rng

LORA_DECAY = 1e-2
LORA_MAX_NORM = 1.0


class Learner:
    """Tokens and LoRA of a pipeline, which it changes."""

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
        freeze(pipeline)
        has_tokens, has_lora = config.mode != "lora", config.mode != "textual_inversion"
        self._tokens = [add_tokens(pipeline, concepts, config.seed)] if has_tokens else []
        self._lora = add_lora(pipeline, config.rank, config.seed) if has_lora else []
        self._reduce_frozen(DTYPES[config.dtype])
        if config.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        is_scaled = config.dtype == "float16"
        self._scaler = torch.amp.GradScaler(pipeline.device.type, enabled=is_scaled)
        self._optimizer: torch.optim.AdamW | None = None

    def begin(self, stage: Stage) -> None:
        """Learn from now on what this stage learns, with a new optimizer.

        The rows of other classes' tokens then stay as they are: their gradient is 0 and the
        optimizer has no momentum for them.
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
        """Do one optimizer step at this fraction of the learning rates; the loss before it.

        Args:
            loss_of: Mean loss of this rank's images.
            rate: In [0, 1].
            share: This rank's images, among those of all ranks.
        """
        assert self._optimizer  # the loop begins a stage before its steps
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"]
        with self._precision():
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

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on in this stage: tensors and plain values."""
        assert self._optimizer  # the loop begins a stage before its steps
        return {
            "learned": [parameter.detach() for parameter in [*self._tokens, *self._lora]],
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be as the learner was that gave this state, in the same stage."""
        assert self._optimizer
        with torch.no_grad():
            for parameter, saved in zip(
                [*self._tokens, *self._lora], state["learned"], strict=True
            ):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def save(self, folder: Path) -> None:
        """Write the result into an existing folder."""
        tokens = self._tokens[0].detach() if self._tokens else None
        save_adapters(folder, self._pipeline, self._concepts, tokens, has_lora=bool(self._lora))

    def draw(self, config: GenerationConfig, path: Path) -> None:
        """Write a sheet of what the model draws by now; nothing that is learned changes."""
        with self._precision():
            draw_validation(self._pipeline, self._concepts, config, path)

    def _precision(self) -> torch.autocast:
        """Where a frozen model of any number format meets float32 additions."""
        dtype = DTYPES[self._config.dtype]
        return torch.autocast(self._pipeline.device.type, dtype, enabled=dtype is not torch.float32)

    def _reduce_frozen(self, dtype: torch.dtype) -> None:
        for part in (self._pipeline.unet, self._pipeline.text_encoder):
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


TOKEN_SPREAD = 1.0
"""How far apart new tokens start, in standard deviations of the known ones."""


class ExtendedEmbedding(nn.Module):
    """A frozen token embedding with trainable rows behind it."""

    def __init__(self, known: nn.Embedding, new: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.known = known
        self.new = nn.Parameter(new.float())

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Rows of the frozen table, or of the new one for ids past its end."""
        size = self.known.num_embeddings
        known = self.known(ids.clamp(max=size - 1))
        new = self.new[(ids - size).clamp(min=0)].to(known.dtype)
        return torch.where((ids >= size).unsqueeze(-1), new, known)


def freeze(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    """Let no weight of the model itself learn."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)


def add_tokens(
    pipeline: StableDiffusionImg2ImgPipeline, concepts: Sequence[Concept], seed: int
) -> nn.Parameter:
    """New tokens that start around the mean of the metaclass' words; their rows, n x d."""
    words = concepts[0].prompt.partition(str(concepts[0].token))[2].strip()
    known = pipeline.text_encoder.get_input_embeddings()
    ids = pipeline.tokenizer(words or "object", add_special_tokens=False).input_ids
    start = known.weight.detach()[ids].mean(0)
    spread = TOKEN_SPREAD * known.weight.detach().std()
    noise = torch.randn(len(concepts), len(start), generator=torch_rng(seed)).to(start)
    pipeline.tokenizer.add_tokens([concept.token for concept in concepts])
    embedding = ExtendedEmbedding(known, start + spread * noise).to(known.weight.device)
    pipeline.text_encoder.set_input_embeddings(embedding)
    return embedding.new


def add_lora(pipeline: StableDiffusionImg2ImgPipeline, rank: int, seed: int) -> list[nn.Parameter]:
    """Low-rank matrices beside every attention of the U-Net, without effect at first."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline.unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=rank,
                init_lora_weights="gaussian",
                target_modules=list(TARGETS),
            )
        )
    return [p for p in pipeline.unet.parameters() if p.requires_grad]
