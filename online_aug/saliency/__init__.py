"""Saliency: maps of where the foreground of an image is, the masks cut from them, their table."""

from online_aug.saliency.grad_cam import grad_cam, quick_copy
from online_aug.saliency.maps import scaled, spectral_residual, upscaled
from online_aug.saliency.masks import grab_cut, otsu_masks, otsu_thresholds
from online_aug.saliency.table import SaliencyTable

__all__ = [
    "SaliencyTable",
    "grab_cut",
    "grad_cam",
    "otsu_masks",
    "otsu_thresholds",
    "quick_copy",
    "scaled",
    "spectral_residual",
    "upscaled",
]
