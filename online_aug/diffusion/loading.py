"""Load a Stable Diffusion, and add what fine-tuning has learned to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from online_aug.diffusion.adapters import Adapters
from online_aug.diffusion.parts import class_of
from online_aug.diffusion.weights import read_unet, variant_of
from online_aug.errors import UserError, one_line
from online_aug.request import PipelineKind

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""PyTorch's number formats by the names that the configuration uses."""
Pipeline: TypeAlias = StableDiffusionImg2ImgPipeline | StableDiffusionInstructPix2PixPipeline
_PIPELINES: Mapping[PipelineKind, Any] = {
    "image_to_image": StableDiffusionImg2ImgPipeline,
    "instruct": StableDiffusionInstructPix2PixPipeline,
}


def load_pipeline(
    folder: Path,
    dtype: str,
    kind: PipelineKind,
    vae: Path | None = None,
    unet: Path | None = None,
) -> Pipeline:
    """Load the pipeline of a directory onto the CPU, without a safety checker.

    Args:
        folder: A model in diffusers' format.
        dtype: Number format of all its networks.
        kind: Which pipeline.
        vae: Directory of a tiny autoencoder that replaces the model's own.
        unet: File of weights that replace those of the model's U-Net.

    Raises:
        UserError: If a directory holds nothing that diffusers can load as this kind, or weights
            that are not finite in this number format.
    """
    networks = {
        part: _load_part(folder / part, _NETWORKS[class_of(folder, part)], dtype)
        for part in ("unet", "text_encoder", *(() if vae else ("vae",)))
    }
    if unet is not None:
        networks["unet"].load_state_dict(read_unet(unet, folder))
    if vae is not None:
        networks["vae"] = _load_part(vae, AutoencoderTiny, dtype, "generation.vae")
    with _quiet(), _refusing(f"generation.model {folder}"):
        pipeline = _PIPELINES[kind].from_pretrained(
            folder,
            **networks,
            **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
            requires_safety_checker=False,
            local_files_only=True,
        )
    pipeline.set_progress_bar_config(disable=True)
    if weight := _first_not_finite(pipeline.components):
        raise UserError(
            f"generation.model must have finite weights in {dtype}, got NaN or infinity in {weight}"
            f" of {folder}: fetch or copy it again, or choose another generation.dtype"
        )
    return pipeline


def load_img2img(
    folder: Path, dtype: str, vae: Path | None = None, unet: Path | None = None
) -> StableDiffusionImg2ImgPipeline:
    """Load the image-to-image pipeline of a directory; see `load_pipeline`."""
    pipeline = load_pipeline(folder, dtype, "image_to_image", vae, unet)
    return cast(StableDiffusionImg2ImgPipeline, pipeline)


_NETWORKS = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
    "CLIPTextModel": CLIPTextModel,
}


def _load_part(folder: Path, kind: Any, dtype: str, key: str = "generation.model") -> nn.Module:
    """Load one network, of which every weight must be there."""
    with _quiet(), _refusing(f"{key} {folder}"):
        network, found = kind.from_pretrained(
            folder,
            torch_dtype=DTYPES[dtype],
            variant=variant_of(folder, key),
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"its files lack the weight {missing[0]}{more}")
    return cast(nn.Module, network)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a foreign directory makes the libraries raise
        raise UserError(f"{what} cannot be loaded: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep out bars and warnings of the libraries while they load, on which nobody could act."""
    loggers = (diffusers_logging, transformers_logging)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggers]
    for each in loggers:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, (level, has_bars) in zip(loggers, before, strict=True):
            each.set_verbosity(level)
            if has_bars:
                each.enable_progress_bar()


def _first_not_finite(components: Mapping[str, object]) -> str | None:
    """Return the first weight with NaN or infinity in it, such as `unet conv_in.weight`."""
    for part, network in components.items():
        if isinstance(network, nn.Module):
            for name, tensor in network.named_parameters():
                if not tensor.isfinite().all():
                    return f"{part} {name}"
    return None


def load_adapters(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    """Add the tokens to the text encoder and merge the LoRA into the U-Net's weights.

    Raises:
        UserError: If they leave weights that are not finite.
    """
    with _quiet():
        if adapters.tokens:
            dtype = pipeline.text_encoder.dtype
            embeddings = [embedding.to(dtype) for embedding in adapters.tokens.values()]
            pipeline.load_textual_inversion(embeddings, token=list(adapters.tokens))
    if adapters.lora is not None:
        _merge_lora(pipeline, adapters.lora)
    if weight := _first_not_finite(pipeline.components):
        raise UserError(
            "finetune.path must hold adapters that leave all weights finite, got NaN or infinity "
            f"in {weight}: learn them anew with a lower finetune.lr, or name others"
        )


def load_few_step_adapter(
    pipeline: Pipeline, lora: Path | Mapping[str, Tensor], path: Path
) -> None:
    """Merge an adapter for few steps into the U-Net's weights, after those of `load_adapters`.

    Args:
        pipeline: The model.
        lora: A file in diffusers' format, or its tensors by diffusers' names.
        path: The file that they are from, for the error.

    Raises:
        UserError: If it leaves weights that are not finite.
    """
    _merge_lora(pipeline, lora)
    if weight := _first_not_finite({"unet": pipeline.unet}):
        raise UserError(
            "generation.few_step_adapter must leave all weights finite, got NaN or infinity in "
            f"{weight} with {path}"
        )


def _merge_lora(pipeline: Pipeline, lora: Path | Mapping[str, Any]) -> None:
    with _quiet():
        if isinstance(lora, Path):
            pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
        else:
            pipeline.load_lora_weights(dict(lora))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()


def training_scheduler(trained_with: Mapping[str, Any]) -> DDPMScheduler:
    """Build the forward process of a model: its noise levels and what its network predicts.

    Args:
        trained_with: Settings of the model's own scheduler.
    """
    return cast(DDPMScheduler, DDPMScheduler.from_config(dict(trained_with), clip_sample=False))
