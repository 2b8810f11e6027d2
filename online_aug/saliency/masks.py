"""From a saliency map to a mask: Otsu's threshold, or GrabCut on the image seeded by it."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_BINS = 256
_SURE_FOREGROUND, _SURE_BACKGROUND = 0.4, 0.25
"""Upper share of Otsu's mask by value, and lowest share of the rest, that GrabCut may not move."""
_ROUNDS = 2
_SEED = 0
"""GrabCut starts its colour models at random, by a generator of OpenCV's own in each thread."""
_HEADER = np.dtype([("side", "<u2"), ("is_fallback", "u1")])


def otsu_masks(maps: Float[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Return where each map is above its Otsu threshold; a flat map gives an empty mask."""
    return maps.double() > otsu_thresholds(maps).view(-1, 1, 1)


def otsu_thresholds(maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Return the Otsu threshold (1979) of each map, which maximises the variance between classes.

    Equal to `skimage.filters.threshold_otsu` of each map in double precision: 256 bins over the
    map's range, the threshold at the centre of a bin. The threshold of a flat map is its value.
    """
    values = maps.double().flatten(1)
    edges = _edges(values)
    counts = _histogram(values, edges)
    centres = (edges[:, :-1] + edges[:, 1:]) / 2
    below, above = counts.cumsum(1), _cumsum_from_right(counts)
    mean_below = (counts * centres).cumsum(1) / below
    mean_above = _cumsum_from_right(counts * centres) / above
    between = below[:, :-1] * above[:, 1:] * (mean_below[:, :-1] - mean_above[:, 1:]) ** 2
    best = centres.gather(1, between.argmax(1, keepdim=True)).squeeze(1)
    is_flat = values.amin(1) == values.amax(1)
    return torch.where(is_flat, values[:, 0], best)


def _edges(values: Float[Tensor, "b n"]) -> Float[Tensor, "b 257"]:
    lowest, highest = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    places = torch.arange(_BINS + 1, dtype=values.dtype, device=values.device)
    edges = places * ((highest - lowest) / _BINS) + lowest
    edges[:, -1:] = highest
    return edges


def _histogram(
    values: Float[Tensor, "b n"], edges: Float[Tensor, "b 257"]
) -> Float[Tensor, "b 256"]:
    inner = edges[:, 1:-1].contiguous()
    bins: Int[Tensor, "b n"] = torch.searchsorted(inner, values.contiguous(), right=True)
    counts = torch.zeros(len(values), _BINS, dtype=values.dtype, device=values.device)
    return counts.scatter_add_(1, bins, torch.ones_like(values))


def _cumsum_from_right(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return values.flip(1).cumsum(1).flip(1)


def grab_cut(
    image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"] | None:
    """Cut the foreground out of an image by GrabCut (Rother et al., SIGGRAPH 2004).

    The seed is Otsu's mask of the map: its upper part by value is certainly foreground, the lowest
    part outside certainly background, and everything between is decided by the image's colours.

    Args:
        image: The image.
        values: Its saliency map at the size of the image.

    Returns:
        The mask; None if it would be empty or cover the whole image.
    """
    seed = otsu_masks(torch.from_numpy(np.ascontiguousarray(values))[None])[0].numpy()
    if not seed.any():
        return None
    sure = values >= np.quantile(values[seed], 1 - _SURE_FOREGROUND)
    never = values <= np.quantile(values[~seed], _SURE_BACKGROUND)
    marks = np.where(seed, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    marks[seed & sure], marks[~seed & never] = cv2.GC_FGD, cv2.GC_BGD
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(_SEED)
    bgr, no_box = np.ascontiguousarray(image[..., ::-1]), (0, 0, 0, 0)
    how = cv2.GC_INIT_WITH_MASK
    cv2.grabCut(bgr, marks, no_box, background, foreground, _ROUNDS, how)
    cut = (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    return cut if 0 < cut.sum() < cut.size else None


def resized_masks(masks: Bool[np.ndarray, "b s s"], side: int) -> Bool[np.ndarray, "b t t"]:
    """Resize masks to a square of `side` px: a pixel belongs to a mask that covers half of it."""
    if masks.shape[1:] == (side, side):
        return masks
    values = torch.from_numpy(masks).float().unsqueeze(1)
    resized = torch.nn.functional.interpolate(values, (side, side), mode="bilinear", antialias=True)
    return np.asarray(resized.squeeze(1).numpy() >= 0.5)


def encode_mask(mask: Bool[np.ndarray, "s s"], *, is_fallback: bool) -> bytes:
    """Encode a mask for the cache, eight pixels a byte.

    Args:
        mask: A square mask.
        is_fallback: Whether it is Otsu's mask, because GrabCut found none.
    """
    header = np.array((len(mask), is_fallback), _HEADER)
    return header.tobytes() + np.packbits(mask).tobytes()


def decode_mask(content: bytes) -> Bool[np.ndarray, "s s"]:
    """Decode the mask that `encode_mask` was given."""
    side = int(np.frombuffer(content, _HEADER, count=1)[0]["side"])
    bits = np.frombuffer(content, np.uint8, offset=_HEADER.itemsize)
    return np.unpackbits(bits, count=side * side).reshape(side, side).astype(np.bool_)


def is_fallback(content: bytes) -> bool:
    """Return whether an encoded mask is Otsu's, because GrabCut found none."""
    return bool(np.frombuffer(content, _HEADER, count=1)[0]["is_fallback"])
