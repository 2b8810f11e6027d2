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
from safetensors.torch import save_file
from torch import Tensor

from online_aug.errors import UserError
from online_aug.generation.adapter_files import TOKENS_FILE, Adapters
from online_aug.generation.concepts import CONCEPTS_FILE, Concept
from online_aug.generation.weights import first_not_finite


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


def load_adapters(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    """Add the tokens to the text encoder and merge the LoRA into the U-Net's weights.

    Raises:
        UserError: If they leave weights that are not finite.
    """
    _add_tokens(pipeline, adapters)
    _merge_lora(pipeline, adapters)
    if spoilt := first_not_finite(pipeline.components):
        raise UserError(
            "finetune.path must hold adapters that leave all weights finite, got NaN or infinity "
            f"in {spoilt}: learn them anew with a lower finetune.lr, or name others"
        )


def _add_tokens(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    if adapters.tokens:
        dtype = pipeline.text_encoder.dtype
        embeddings = [embedding.to(dtype) for embedding in adapters.tokens.values()]
        pipeline.load_textual_inversion(embeddings, token=list(adapters.tokens))


def _merge_lora(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    if adapters.lora is None:
        return
    if isinstance(adapters.lora, Path):
        pipeline.load_lora_weights(adapters.lora.parent, weight_name=adapters.lora.name)
    else:
        pipeline.load_lora_weights(dict(adapters.lora))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
