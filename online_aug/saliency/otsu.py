"""Otsu's threshold (1979) of many maps at once, on their device."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BINS = 256


def otsu_masks(maps: Float[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Where each map is above its threshold; nowhere in a flat map."""
    return maps.double() > otsu_thresholds(maps).view(-1, 1, 1)


def otsu_thresholds(maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """The value that splits each map into the two classes of largest variance between them.

    Equal to `skimage.filters.threshold_otsu` of each map in double precision: 256 bins over the
    map's own range, the threshold at the centre of a bin, a flat map's threshold its value.
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
    places = torch.arange(BINS + 1, dtype=values.dtype, device=values.device)
    edges = places * ((highest - lowest) / BINS) + lowest
    edges[:, -1:] = highest
    return edges


def _histogram(
    values: Float[Tensor, "b n"], edges: Float[Tensor, "b 257"]
) -> Float[Tensor, "b 256"]:
    inner = edges[:, 1:-1].contiguous()
    bins: Int[Tensor, "b n"] = torch.searchsorted(inner, values.contiguous(), right=True)
    counts = torch.zeros(len(values), BINS, dtype=values.dtype, device=values.device)
    return counts.scatter_add_(1, bins, torch.ones_like(values))


def _cumsum_from_right(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return values.flip(1).cumsum(1).flip(1)
