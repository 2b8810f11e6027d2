"""What is put into a frozen model to be learned: rows of the token embedding, LoRA matrices."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn

from online_aug.generation.concepts import Concept
from online_aug.generation.lora_names import TARGETS
from online_aug.seeding import torch_rng

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
