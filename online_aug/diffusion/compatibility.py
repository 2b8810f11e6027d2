"""Settings of generation that the model or the device decides, or rules out.

Number of steps, number format, attention kernels, images denoised together (slots).
Importing this loads no diffusers, so a dry run can check.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cache.text import byte_size
from online_aug.config import Config
from online_aug.config.loading import changed
from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.directory import (
    locate_model,
    native_resolution,
    scheduler_settings,
    unet_settings,
)
from online_aug.diffusion.few_steps import FEW_STEPS, is_turbo
from online_aug.errors import UserError, one_line
from online_aug.methods import find_method
from online_aug.methods.strengths import USUAL_STEPS
from online_aug.settings import decided

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from online_aug.diffusion.loading import Pipeline

USUAL_SIDE = 512
"""Side if no model is used."""
CPU_SLOTS = 8
"""More make no image faster on a CPU and keep the first one waiting longer."""
MAX_SLOTS = 16
"""With guidance a batch of 32, which keeps a GPU busy."""
SHARE_OF_FREE = 0.5
"""Share of the free memory for slots; the decoder and a classifier yet to start need the rest."""
_log = logging.getLogger(__name__)


def settle(config: Config) -> Config:
    """Return the configuration with the values of the model's own files in the place of null.

    A model is looked for, and downloaded if it is a name of the hub, only if one is used. If a
    server makes the images, it is asked which model it has, and of what version.

    Raises:
        UserError: If there is no such model or server, or the values break a rule between keys.
    """
    if config.asks_server:
        from online_aug.image_server.identity import settle_server

        config = settle_server(config)
    made = config.generation
    if made.resolution is not None and made.num_inference_steps is not None:
        return config
    resolution, steps = USUAL_SIDE, USUAL_STEPS
    if config.uses_diffusion and not config.asks_server:
        methods = [find_method(settings.name) for settings in config.methods]
        first = next((method for method in methods if method.generates), methods[0])
        model = locate_model(made, first.pipeline)
        resolution, steps = native_resolution(model), _own_steps(made, model)
    return changed(
        config,
        "generation",
        resolution=made.resolution or resolution,
        num_inference_steps=made.num_inference_steps or steps,
    )


def _own_steps(config: GenerationConfig, model: Path) -> int:
    is_consistent = config.scheduler == "lcm" or unet_settings(model).get("time_cond_proj_dim")
    return FEW_STEPS if is_consistent or is_turbo(scheduler_settings(model)) else USUAL_STEPS


def choose_dtype(name: str, device: str) -> str:
    """Return the number format that `auto` means on a device; any other name as it is."""
    if name != "auto":
        return name
    return "float32" if device == "cpu" else "float16"


def check_attention(name: str, device: str) -> None:
    """Raise if no model can run these attention kernels on this device.

    Raises:
        UserError: If xformers is asked for on a CPU.
    """
    if name == "xformers" and device == "cpu":
        raise UserError("generation.attention must be auto or sdpa on cpu, got 'xformers'")


def choose_attention(name: str, pipeline: "Pipeline", device: torch.device) -> str:
    """Set the attention kernels of a pipeline; `auto` takes the faster ones on a GPU.

    Returns:
        `sdpa` or `xformers`.

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


def _faster_attention(pipeline: "Pipeline", device: torch.device) -> str:
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


def _milliseconds(function: Callable[[], object], repeats: int = 20) -> float:
    function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / repeats


def choose_slots(config: GenerationConfig, pipeline: "Pipeline") -> int:
    """Return the number of slots; `auto` measures on a GPU what one and two images take.

    Args:
        config: The number asked for, resolution and guidance.
        pipeline: A pipeline on its device.

    Raises:
        UserError: If the configured number takes more memory than is free.
    """
    unet, wanted = pipeline.unet, config.slots
    if wanted == "auto" and unet.device.type == "cpu":
        return CPU_SLOTS
    rows = _rows_per_slot(config, pipeline)
    side = decided(config.resolution) // pipeline.vae_scale_factor
    free = _free_bytes(unet.device)

    def peak_bytes(count: int) -> int:
        return _peak_bytes(unet, count * rows, side)

    if wanted == "auto":
        return fitting_slots(peak_bytes, SHARE_OF_FREE * free)
    check_slots(wanted, peak_bytes, free, str(unet.device))
    return wanted


def fitting_slots(peak_bytes: Callable[[int], int], budget: float) -> int:
    """Return the largest power of two that is expected to fit, from 1 to `MAX_SLOTS`.

    Args:
        peak_bytes: Measures the memory that a call with so many slots takes beside the weights.
        budget: Memory that it may take, bytes.
    """
    fits = _estimated_fit(peak_bytes, budget)
    slots = 1
    while 2 * slots <= min(fits, MAX_SLOTS):
        slots *= 2
    return slots


def check_slots(slots: int, peak_bytes: Callable[[int], int], free: int, device: str) -> None:
    """Raise if not even one call of the network with so many slots fits into memory.

    Args:
        slots: The configured number.
        peak_bytes: As in `fitting_slots`.
        free: Free memory of the device, bytes.
        device: Its name, for the error.

    Raises:
        UserError: If they do not fit.
    """
    fits = max(0, int(_estimated_fit(peak_bytes, free)))
    if slots > fits:
        raise UserError(
            f"generation.slots must fit into the memory of {device}, {byte_size(free)} of which "
            f"are free beside the weights, got {slots}, of which {fits} fit; auto takes fewer"
        )


def _estimated_fit(peak_bytes: Callable[[int], int], budget: float) -> float:
    one, two = peak_bytes(1), peak_bytes(2)
    return 1 + (budget - one) / max(1, two - one)


def _rows_per_slot(config: GenerationConfig, pipeline: "Pipeline") -> int:
    """Count the rows of a batch for each slot: guidance adds some without prompt or source."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    if config.guidance_scale <= 1:
        return 1
    if isinstance(pipeline, StableDiffusionInstructPix2PixPipeline):
        return 3
    return 1 if pipeline.unet.config.time_cond_proj_dim else 2


def _free_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.cuda.mem_get_info(device)[0])


@torch.no_grad()
def _peak_bytes(unet: "UNet2DConditionModel", rows: int, side: int) -> int:
    """Measure the memory that a call takes beside its inputs and the weights."""
    device, dtype = unet.device, unet.dtype
    latents = torch.zeros(rows, unet.config.in_channels, side, side, device=device, dtype=dtype)
    prompts = torch.zeros(rows, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    inputs = (latents, torch.zeros(rows, device=device), prompts)
    if device.type == "cpu":
        counted = _LiveTensors([*unet.parameters(), *unet.buffers(), *inputs])
        with counted:
            unet(*inputs)
        return counted.peak_bytes
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    unet(*inputs)
    return torch.cuda.max_memory_allocated(device) - before


class _LiveTensors(TorchDispatchMode):
    """Adds up the tensors that are alive at one time; PyTorch counts no memory on a CPU."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Leave out the tensors that exist already."""
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
