"""Where a classifier looks: Grad-CAM, spectral residual, Otsu masks."""

from online_aug.saliency.cam import grad_cam
from online_aug.saliency.maps import follow, scaled, upscaled
from online_aug.saliency.otsu import otsu_masks, otsu_thresholds
from online_aug.saliency.quick import quick_copy
from online_aug.saliency.spectral import spectral_residual
from online_aug.saliency.table import SaliencyTable

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
