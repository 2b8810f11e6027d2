"""Saliency: maps of where a classifier looks (Grad-CAM) or what stands out, and Otsu masks."""

from online_aug.saliency.grad_cam import grad_cam, quick_copy
from online_aug.saliency.maps import (
    SaliencyTable,
    otsu_masks,
    otsu_thresholds,
    scaled,
    spectral_residual,
    upscaled,
)

__all__ = [
    "SaliencyTable",
    "grad_cam",
    "otsu_masks",
    "otsu_thresholds",
    "quick_copy",
    "scaled",
    "spectral_residual",
    "upscaled",
]
