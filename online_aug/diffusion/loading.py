"""Loading a Stable Diffusion and choosing its attention.

How many images fit on the generator's device together.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import psutil
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils import logging as transformers_logging

from cache.text import byte_size
from online_aug.config.generation import GenerationConfig
from online_aug.diffusion.directory import first_not_finite
from online_aug.errors import UserError, one_line
from online_aug.request import PipelineKind

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


CPU_SLOTS = 8
"""More make no image faster on a CPU and keep the first one waiting longer."""
MOST_SLOTS = 16
"""With guidance a batch of 32, which keeps a GPU busy."""
SHARE_OF_FREE = 0.5
"""The rest is for the decoder, and for a classifier that has not begun yet."""


def chosen_slots(config: GenerationConfig, pipeline: Pipeline) -> int:
    """The number of slots; `auto` measures on a GPU what one and two images take.

    Args:
        config: Number wanted, resolution and guidance.
        pipeline: On its device.

    Raises:
        UserError: If the configured number takes more memory than is free.
    """
    unet, wanted = pipeline.unet, config.slots
    if wanted == "auto" and unet.device.type == "cpu":
        return CPU_SLOTS
    rows, side = _rows(config, pipeline), config.resolution // pipeline.vae_scale_factor
    free = _free_bytes(unet.device)

    def peak_bytes(count: int) -> int:
        return _peak_bytes(unet, count * rows, side)

    if wanted == "auto":
        return fitting_slots(peak_bytes, SHARE_OF_FREE * free)
    check_slots(wanted, peak_bytes, free, str(unet.device))
    return wanted


def fitting_slots(peak_bytes: Callable[[int], int], budget: float) -> int:
    """The largest power of two that is expected to fit, at least 1 and at most `MOST_SLOTS`.

    Args:
        peak_bytes: Measures what a call over a number of slots takes beside the weights.
        budget: Bytes it may take.
    """
    fits = _fitting(peak_bytes, budget)
    slots = 1
    while 2 * slots <= min(fits, MOST_SLOTS):
        slots *= 2
    return slots


def check_slots(slots: int, peak_bytes: Callable[[int], int], free: int, device: str) -> None:
    """Refuse a number of slots of which not even a call of the network fits.

    Args:
        slots: Of the configuration.
        peak_bytes: As in `fitting_slots`.
        free: Bytes of the device that nobody uses.
        device: Its name.

    Raises:
        UserError: If they do not fit.
    """
    fits = max(0, int(_fitting(peak_bytes, free)))
    if slots > fits:
        raise UserError(
            f"generation.slots must fit into the memory of {device}, {byte_size(free)} of which "
            f"are free beside the weights, got {slots}, of which {fits} fit; auto takes fewer"
        )


def _fitting(peak_bytes: Callable[[int], int], budget: float) -> float:
    one, two = peak_bytes(1), peak_bytes(2)
    return 1 + (budget - one) / max(1, two - one)


def _rows(config: GenerationConfig, pipeline: Pipeline) -> int:
    """Rows of a call for each slot: guidance takes some without prompt or source."""
    if isinstance(pipeline, StableDiffusionInstructPix2PixPipeline):
        guided = 3
    else:
        guided = 1 if pipeline.unet.config.time_cond_proj_dim else 2
    return guided if config.guidance_scale > 1 else 1


def _free_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.cuda.mem_get_info(device)[0])


@torch.no_grad()
def _peak_bytes(unet: UNet2DConditionModel, rows: int, side: int) -> int:
    """What a call takes beside its inputs and the weights."""
    device, dtype = unet.device, unet.dtype
    latents = torch.zeros(rows, unet.config.in_channels, side, side, device=device, dtype=dtype)
    prompts = torch.zeros(rows, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    inputs = (latents, torch.zeros(rows, device=device), prompts)
    if device.type == "cpu":
        tally = _Tally([*unet.parameters(), *unet.buffers(), *inputs])
        with tally:
            unet(*inputs)
        return tally.peak_bytes
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    unet(*inputs)
    return torch.cuda.max_memory_allocated(device) - before


class _Tally(TorchDispatchMode):
    """Adds up the tensors that live at a time, which a CPU does not tell."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Count nothing of tensors that are there already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._living: dict[int, int] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, sum(self._living.values()))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        number = storage._cdata
        if number not in self._known and number not in self._living:
            self._living[number] = storage.nbytes()
            weakref.finalize(storage, self._living.pop, number)
