"""Which images go where: stratified splits, few-shot and long-tail cuts, all by index."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def stratified_split(
    labels: Int[np.ndarray, " n"], fractions: Sequence[float], rng: np.random.Generator
) -> list[Int[np.ndarray, " m"]]:
    """Indices of the parts, each sorted; every index is in exactly one part.

    Each class is divided by the largest remainders, and every part gets at least one image of it.
    `fractions` are the sizes of the parts, above 0, summing to 1.

    Raises:
        ValueError: If a class has fewer images than there are parts, or the fractions are wrong.
    """
    shares = np.asarray(fractions, float)
    if (shares <= 0).any() or not np.isclose(shares.sum(), 1):
        raise ValueError(f"fractions must be positive and sum to 1, got {list(fractions)}")
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label, members in _shuffled_classes(labels, rng):
        if 0 < len(members) < len(shares):
            raise ValueError(
                f"each class must have at least {len(shares)} images to be split, "
                f"got {len(members)} of class {label}"
            )
        ends = np.cumsum(_apportion(len(members), shares))[:-1]
        for part, chosen in zip(parts, np.split(members, ends), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def few_shot(
    labels: Int[np.ndarray, " n"], examples_per_class: int, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Sorted indices of `examples_per_class` images of every class.

    With the same seed a smaller cut is part of a larger one, and what is drawn of one class does
    not depend on the sizes of the others.

    Raises:
        ValueError: If a class has fewer images.
    """
    chosen = []
    for label, members in _shuffled_classes(labels, rng):
        if 0 < len(members) < examples_per_class:
            raise ValueError(
                f"examples_per_class must be at most {len(members)}, "
                f"the size of class {label}, got {examples_per_class}"
            )
        chosen.append(members[:examples_per_class])
    return np.sort(np.concatenate(chosen))


def long_tail(
    labels: Int[np.ndarray, " n"], imbalance_factor: float, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Sorted indices of a training set whose class sizes fall exponentially.

    Diff-Mix (arXiv:2403.19600): classes sorted by size, largest first, keep
    `N / C * imbalance_factor ** (k / (C - 1))` images, for k = 0 .. C - 1. The authors' code
    divides by C - 2, which makes the tail smaller than the factor says; with C - 1, the form common
    in long-tail work, the smallest class over the largest is `imbalance_factor`, in (0, 1], up to
    rounding to whole images. Every class keeps at least one. Where the smallest class has fewer
    than the formula wants, the whole curve is lowered until it fits, so that the ratio holds.

    Raises:
        ValueError: If `imbalance_factor` is out of range.
    """
    if not 0 < imbalance_factor <= 1:
        raise ValueError(f"imbalance_factor must be in (0, 1], got {imbalance_factor}")
    classes = [members for _, members in _shuffled_classes(labels, rng) if len(members)]
    classes.sort(key=len, reverse=True)  # stable: classes of one size stay in order of their label
    head = min(len(labels) / len(classes), len(classes[-1]) / imbalance_factor)
    steps = max(len(classes) - 1, 1)
    # Rounding the head first keeps the smallest-to-largest ratio closest to the factor.
    sizes = np.round(np.round(head) * imbalance_factor ** (np.arange(len(classes)) / steps))
    kept = [members[: max(int(size), 1)] for members, size in zip(classes, sizes, strict=True)]
    return np.sort(np.concatenate(kept))


def _shuffled_classes(
    labels: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, Int[np.ndarray, " m"]]]:
    """Each class with its indices in random order; a stream of its own for each class."""
    streams = rng.spawn(int(labels.max()) + 1) if len(labels) else []
    return [
        (label, stream.permutation(np.flatnonzero(labels == label)))
        for label, stream in enumerate(streams)
    ]


def _apportion(size: int, shares: np.ndarray) -> Int[np.ndarray, " parts"]:
    exact = shares * size
    counts: np.ndarray = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: size - counts.sum()]] += 1
    while size and (counts == 0).any():
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return counts
