"""What fine-tuning adds to a model: class tokens and LoRA, in diffusers' own file formats.

A folder holds `pytorch_lora_weights.safetensors` (diffusers' LoRA format) where LoRA was learned,
`tokens_emb.safetensors` (one tensor `clip_l` of n x d, the format of diffusers' pivotal tuning)
where tokens were, and `concepts.json` (class, token and prompt of each row). Stock diffusers loads
the first two, each in one call.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from online_aug.generation.concepts import CONCEPTS_FILE, Concept

LORA_FILE = "pytorch_lora_weights.safetensors"
TOKENS_FILE = "tokens_emb.safetensors"


def save_adapters(
    folder: Path,
    pipeline: StableDiffusionImg2ImgPipeline,
    concepts: Sequence[Concept],
    tokens: Float[Tensor, "n d"] | None,
    *,
    has_lora: bool,
) -> None:
    """Write what was learned into an existing folder, the concepts last.

    Args:
        folder: Where.
        pipeline: Whose U-Net holds the LoRA.
        concepts: Class, token and prompt by label.
        tokens: Embedding of each concept's token; None where the prompts hold class names.
        has_lora: LoRA was learned.
    """
    if has_lora:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
        pipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
    if tokens is not None:
        save_file({"clip_l": tokens.float().cpu().contiguous()}, folder / TOKENS_FILE)
    (folder / CONCEPTS_FILE).write_text(json.dumps([asdict(c) for c in concepts], indent=1))


def load_adapters(pipeline: StableDiffusionImg2ImgPipeline, folder: Path) -> None:
    """Add the tokens to the text encoder and merge the LoRA into the U-Net's weights."""
    if (folder / TOKENS_FILE).is_file():
        concepts = json.loads((folder / CONCEPTS_FILE).read_text())
        embeddings = load_file(folder / TOKENS_FILE)["clip_l"].to(pipeline.text_encoder.dtype)
        tokens = [concept["token"] for concept in concepts]
        pipeline.load_textual_inversion(embeddings, token=tokens)
    if (folder / LORA_FILE).is_file():
        pipeline.load_lora_weights(folder)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
