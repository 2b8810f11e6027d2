"""Loading a Stable Diffusion and choosing its attention."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from online_aug.errors import UserError, one_line
from online_aug.generation.weights import first_not_finite
from online_aug.records import PipelineKind

_log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Pipeline: TypeAlias = StableDiffusionImg2ImgPipeline | StableDiffusionInstructPix2PixPipeline
_PIPELINES: Mapping[PipelineKind, Any] = {
    "image_to_image": StableDiffusionImg2ImgPipeline,
    "instruct": StableDiffusionInstructPix2PixPipeline,
}

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


def load_img2img(
    folder: Path, dtype: str, vae: Path | None = None
) -> StableDiffusionImg2ImgPipeline:
    """The image-to-image pipeline of a directory, on the CPU, without a safety checker.

    Raises:
        UserError: If the directory holds no Stable Diffusion that diffusers can load.
    """
    pipeline = load_pipeline(folder, dtype, "image_to_image", vae)
    return cast(StableDiffusionImg2ImgPipeline, pipeline)


def load_pipeline(
    folder: Path, dtype: str, kind: PipelineKind, vae: Path | None = None
) -> Pipeline:
    """The pipeline of a directory, on the CPU, without a safety checker.

    Args:
        folder: A model in diffusers' format.
        dtype: Number format of all its networks.
        kind: Which pipeline.
        vae: Directory of a tiny autoencoder that takes the place of the model's own.

    Raises:
        UserError: If a directory holds nothing that diffusers can load as this kind, or weights
            that are not finite in this number format.
    """
    try:
        pipeline = _PIPELINES[kind].from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = one_line(error)
        raise UserError(f"generation.model {folder} cannot be loaded: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    if vae is not None:
        pipeline.vae = _load_vae(vae, dtype)
    if spoilt := first_not_finite(pipeline.components):
        raise UserError(
            f"generation.model must have finite weights in {dtype}, got NaN or infinity in {spoilt}"
            f" of {folder}: fetch or copy it again, or choose another generation.dtype"
        )
    return pipeline


def _load_vae(folder: Path, dtype: str) -> AutoencoderTiny:
    try:
        vae, found = AutoencoderTiny.from_pretrained(
            folder, torch_dtype=DTYPES[dtype], local_files_only=True, output_loading_info=True
        )
        if found["missing_keys"]:
            raise ValueError(f"{len(found['missing_keys'])} of its weights are missing")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"generation.vae {folder} cannot be loaded: {one_line(error)}") from error
    return cast(AutoencoderTiny, vae)


def training_scheduler(trained_with: Mapping[str, Any]) -> DDPMScheduler:
    """The forward process of the model: noise levels and what its network predicts."""
    return cast(DDPMScheduler, DDPMScheduler.from_config(dict(trained_with), clip_sample=False))


def choose_attention(name: str, pipeline: Pipeline, device: torch.device) -> str:
    """Set the attention kernels; `auto` takes xformers' on a GPU where they are the faster ones.

    Raises:
        UserError: If xformers is asked for and cannot run on this device.
    """
    if name == "sdpa" or (name == "auto" and device.type == "cpu"):
        return "sdpa"
    if name == "auto":
        return _faster_attention(pipeline, device)
    try:
        pipeline.enable_xformers_memory_efficient_attention()
    except (ValueError, ModuleNotFoundError, NotImplementedError) as error:
        reason = one_line(error)
        raise UserError(
            f"generation.attention must be auto or sdpa on {device}, got 'xformers' ({reason})"
        ) from error
    return "xformers"


def _faster_attention(pipeline: Pipeline, device: torch.device) -> str:
    import xformers.ops

    side = pipeline.unet.config.sample_size**2
    shape = (2, side, 8, 40)
    query = torch.randn(shape, device=device, dtype=pipeline.unet.dtype)

    def sdpa() -> None:
        q = query.transpose(1, 2)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)

    try:
        xformers_ms = _milliseconds(
            lambda: xformers.ops.memory_efficient_attention(query, query, query)
        )
    except (NotImplementedError, ValueError, RuntimeError) as error:
        _log.info("attention: xformers cannot run here (%s)", error)
        return "sdpa"
    if _milliseconds(sdpa) <= xformers_ms:
        return "sdpa"
    pipeline.enable_xformers_memory_efficient_attention()
    return "xformers"


def _milliseconds(function: Any, repeats: int = 20) -> float:
    function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / repeats
