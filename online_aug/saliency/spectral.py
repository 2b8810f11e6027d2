"""Spectral residual (Hou and Zhang, CVPR 2007): saliency without a classifier or a gradient."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.saliency.maps import scaled

SIDE_PX = 64
"""Side at which the spectrum is taken; the paper's choice, objects of this scale stand out."""
SIGMA_PX = 2.5
"""Of the last blur, from the authors' published code, as its window of 10 px (here 11)."""
WINDOW_PX = 11
LUMA = (0.299, 0.587, 0.114)


def spectral_residual(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 64 64"]:
    """Maps from 0 to 1 of what the smooth part of each image's log spectrum does not predict."""
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    grey = (images.float() / 255 * luma).sum(1, keepdim=True)
    small = F.interpolate(grey, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
    spectrum = torch.fft.fft2(small)
    amplitude = torch.log(spectrum.abs().clamp(min=1e-8))
    residual = amplitude - _blurred(amplitude, torch.full((3,), 1 / 3, device=images.device))
    back = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle()))
    return scaled(_blurred(back.abs() ** 2, _gaussian(images.device)).squeeze(1))


def _blurred(maps: Float[Tensor, "b 1 h w"], kernel: Float[Tensor, " k"]) -> Tensor:
    margin = len(kernel) // 2
    padded = F.pad(maps, (margin,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def _gaussian(device: torch.device) -> Float[Tensor, " k"]:
    places = torch.arange(WINDOW_PX, device=device) - WINDOW_PX // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA_PX**2))
    return weights / weights.sum()
