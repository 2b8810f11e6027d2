"""Where a classifier looks: Grad-CAM, spectral residual, Otsu masks."""

from online_aug.saliency.grad_cam import grad_cam, quick_copy
from online_aug.saliency.maps import (
    SaliencyTable,
    follow,
    otsu_masks,
    otsu_thresholds,
    scaled,
    spectral_residual,
    upscaled,
)

__all__ = [
    "SaliencyTable",
    "follow",
    "grad_cam",
    "otsu_masks",
    "otsu_thresholds",
    "quick_copy",
    "scaled",
    "spectral_residual",
    "upscaled",
]
