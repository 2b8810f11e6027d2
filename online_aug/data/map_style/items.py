"""The items of a caller's own map-style data set: images and labels, or one clear refusal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import IterableDataset

from online_aug.data.images import to_rgb
from online_aug.data.transforms import to_bytes
from online_aug.errors import UserError, one_line

Picture = UInt8[np.ndarray, "h w 3"]
_CHANNELS = (1, 3, 4)


class Items:
    """Images and labels of a data set; every item is checked when it is read."""

    def __init__(self, dataset: Any, class_names: Sequence[str] | None = None) -> None:
        """Check what can be seen without reading the whole set.

        Args:
            dataset: Has `__len__`, and `__getitem__` that returns (image, label) or a mapping with
                `image` and `label`.
            class_names: Names by label; None takes the data set's own `class_names` or `classes`.

        Raises:
            UserError: If it is not map-style, is empty, or its classes have no names.
        """
        self._dataset = dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UserError(_not_map_style(dataset))
        try:
            self._count = len(dataset)
        except (TypeError, NotImplementedError):
            raise UserError(_not_map_style(dataset)) from None
        if not self._count:
            raise UserError("dataset must hold images, got an empty one")
        self.class_names = _checked_names(class_names or _own_names(dataset))
        self._kind = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    def read(self, index: int) -> tuple[Picture, int]:
        """Return image and label of one item.

        Raises:
            UserError: If the item cannot be read, or is not an image with a whole number.
        """
        try:
            item = self._dataset[index]
        except Exception as error:  # whatever the caller's own code raises
            raise UserError(f"item {index} of dataset cannot be read: {one_line(error)}") from error
        image, label = _pair(item, index)
        return self._picture(image, index), self._label(label, index)

    def _label(self, label: Any, index: int) -> int:
        if isinstance(label, Tensor | np.ndarray | np.generic):
            found = np.asarray(label)
            if found.size != 1 or found.dtype.kind not in "iu":
                kind = f"{type(label).__name__} of {found.dtype}, shape {found.shape}"
                raise UserError(_not_a_label(index, kind))
            label = int(found.item())
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(_not_a_label(index, f"{type(label).__name__} {label!r:.40}"))
        if not 0 <= label < len(self.class_names):
            raise UserError(
                f"label of item {index} of dataset must be below {len(self.class_names)}, the "
                f"number of class names, and not below 0, got {label}"
            )
        return label

    def _picture(self, image: Any, index: int) -> Picture:
        kind = _kind_of(image)
        self._kind = self._kind or kind
        if kind != self._kind:
            raise UserError(
                f"images of dataset must be of one type, got {self._kind} first and {kind} for "
                f"item {index}"
            )
        try:
            return _to_picture(image)
        except ValueError as error:
            raise UserError(f"image of item {index} of dataset {error}") from None


def _not_map_style(dataset: Any) -> str:
    return (
        "dataset must be map-style, with __len__ and __getitem__, got "
        f"{type(dataset).__name__}: read it into a list of (image, label), or write its images "
        "into a folder for each class"
    )


def _not_a_label(index: int, got: str) -> str:
    return (
        f"label of item {index} of dataset must be a whole number, got {got}: of one-hot labels or "
        "scores take the argmax"
    )


def _own_names(dataset: Any) -> Sequence[str]:
    for name in ("class_names", "classes"):
        if names := getattr(dataset, name, None):
            return list(names)
    feature = (getattr(dataset, "features", None) or {}).get("label")  # Hugging Face's data sets
    if names := getattr(feature, "names", None):
        return list(names)
    inner = getattr(dataset, "dataset", None)  # torch's Subset, and wrappers like it
    if inner is not None and inner is not dataset:
        return _own_names(inner)
    raise UserError(
        "class_names must be given, as dataset has neither class_names nor classes: prompts and "
        "reports name the classes"
    )


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise UserError(f"class_names must be words, got {wrong[0]!r}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"class_names must differ, got {twice!r} twice")
    return tuple(names)


def _pair(item: Any, index: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and {"image", "label"} <= item.keys():
        return item["image"], item["label"]
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        got = f"a mapping of {', '.join(map(str, item))}"
    else:
        got = f"{type(item).__name__} without a label"
    raise UserError(
        f"item {index} of dataset must be a pair (image, label), or a mapping with image and "
        f"label, got {got}"
    )


def _kind_of(image: Any) -> str:
    if isinstance(image, PIL.Image.Image):
        return "PIL image"
    if isinstance(image, Tensor | np.ndarray):
        return f"{type(image).__name__} of {str(image.dtype).removeprefix('torch.')}"
    return type(image).__name__


def _to_picture(image: Any) -> Picture:
    if isinstance(image, PIL.Image.Image):
        return to_rgb(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(f"must be a PIL image, array or tensor, got {type(image).__name__}")
    pixels = torch.as_tensor(
        np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image
    )
    pixels = _channels_first(pixels.detach().cpu(), prefers_last=isinstance(image, np.ndarray))
    if pixels.is_floating_point():
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError(
                "must be bytes or in [0, 1], got floats beyond: leave normalising to your loop, or "
                "pass it as transform="
            )
        pixels = to_bytes(pixels.float())
    if pixels.dtype != torch.uint8:
        raise ValueError(f"must be bytes or floats in [0, 1], got {pixels.dtype}")
    colours = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(colours.permute(1, 2, 0).numpy())


def _channels_first(pixels: Tensor, *, prefers_last: bool) -> Tensor:
    """Order channels, rows, columns: arrays have their channels last by custom, tensors first."""
    if pixels.ndim == 2:
        return pixels.unsqueeze(0)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"must have rows, columns and channels, got shape {tuple(pixels.shape)}")
    first, last = pixels.shape[0] in _CHANNELS, pixels.shape[2] in _CHANNELS
    if not (first or last):
        raise ValueError(f"must have 1, 3 or 4 channels, got shape {tuple(pixels.shape)}")
    is_last = last and (prefers_last or not first)
    return pixels.permute(2, 0, 1) if is_last else pixels
