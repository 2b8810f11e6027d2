"""Fractal pictures that DiffuseMix blends over an image: our own, or those of a folder."""

from online_aug.fractals.bank import FractalBank, bank_of
from online_aug.fractals.drawing import draw_fractal

__all__ = ["FractalBank", "bank_of", "draw_fractal"]
