"""How many images fit on the generator's device together."""

from collections.abc import Callable
from typing import Literal

import torch
from diffusers import UNet2DConditionModel

from online_aug.generation.models import Pipeline

CPU_SLOTS = 8
"""More make no image faster on a CPU and keep the first one waiting longer."""
MOST_SLOTS = 16
"""With guidance a batch of 32, which keeps a GPU busy."""
SHARE_OF_FREE = 0.5
"""The rest is for the decoder, and for a classifier that has not begun yet."""


def chosen_slots(wanted: Literal["auto"] | int, pipeline: Pipeline, resolution: int) -> int:
    """The number of slots; `auto` measures on a GPU what one and two images take.

    Args:
        wanted: Of the configuration.
        pipeline: On its device.
        resolution: Side of the images, px.
    """
    if wanted != "auto":
        return wanted
    if pipeline.unet.device.type == "cpu":
        return CPU_SLOTS
    free, _ = torch.cuda.mem_get_info(pipeline.unet.device)
    side = resolution // pipeline.vae_scale_factor
    return fitting_slots(
        lambda count: _peak_bytes(pipeline.unet, count, side), SHARE_OF_FREE * free
    )


def fitting_slots(peak_bytes: Callable[[int], int], budget: float) -> int:
    """The largest power of two that is expected to fit, at least 1 and at most `MOST_SLOTS`.

    Args:
        peak_bytes: Measures what a call over a number of slots takes beside the weights.
        budget: Bytes it may take.
    """
    one, two = peak_bytes(1), peak_bytes(2)
    fits = 1 + (budget - one) / max(1, two - one)
    slots = 1
    while 2 * slots <= min(fits, MOST_SLOTS):
        slots *= 2
    return slots


@torch.no_grad()
def _peak_bytes(unet: UNet2DConditionModel, count: int, side: int) -> int:
    device, dtype, channels = unet.device, unet.dtype, unet.config.in_channels
    rows = count * (3 if channels == 2 * unet.config.out_channels else 2)  # guidance of an editor
    latents = torch.zeros(rows, channels, side, side, device=device, dtype=dtype)
    prompts = torch.zeros(rows, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    unet(latents, torch.zeros(rows, device=device), prompts)
    return torch.cuda.max_memory_allocated(device) - before
