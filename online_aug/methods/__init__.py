"""The augmentation methods: one file a method, with its settings; `base.py` is the contract."""

from online_aug.methods.base import (
    Method,
    MethodContext,
    MethodSettings,
    Part,
    Picture,
    Source,
    draw_part,
)
from online_aug.methods.registry import METHODS, find_method, make_method

__all__ = [
    "METHODS",
    "Method",
    "MethodContext",
    "MethodSettings",
    "Part",
    "Picture",
    "Source",
    "draw_part",
    "find_method",
    "make_method",
]
