"""Choose images by class: parts in proportion, the same number of each class, or a long tail."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def stratified_split(
    labels: Int[np.ndarray, " n"], fractions: Sequence[float], rng: np.random.Generator
) -> list[Int[np.ndarray, " m"]]:
    """Divide all indices into parts, each sorted, with every class in proportion.

    Each class is divided by the method of largest remainders, at least one image to every part.

    Args:
        labels: Label of each image.
        fractions: Sizes of the parts, above 0, summing to 1.
        rng: Decides which images go where.

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
    """Choose `examples_per_class` images of every class; return their sorted indices.

    With the same seed a smaller cut is part of a larger one, and the choice in one class does not
    depend on the sizes of the others.

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
    labels: Int[np.ndarray, " n"],
    imbalance_factor: float,
    rng: np.random.Generator,
    *,
    is_published: bool = False,
) -> Int[np.ndarray, " m"]:
    """Choose images so that class sizes fall exponentially; return their sorted indices.

    Of N images in C classes, sorted by size with the largest first, class k = 0 .. C - 1 keeps
    `N / C * imbalance_factor ** (k / (C - 1))` images, rounded, and at least one. If the smallest
    class has too few images, the whole curve is lowered so that the ratio holds.

    Args:
        labels: Label of each image.
        imbalance_factor: Size of the smallest class over the largest, in (0, 1].
        rng: Decides which images of a class stay.
        is_published: Whether to divide by C - 2 and drop fractions, as Diff-Mix's code does.
    """
    if not 0 < imbalance_factor <= 1:
        raise ValueError(f"imbalance_factor must be in (0, 1], got {imbalance_factor}")
    found = [members for _, members in _shuffled_classes(labels, rng) if len(members)]
    classes = sorted(found, key=len, reverse=True)  # stable: by label among classes of one size
    head, rounded = len(labels) / len(classes), np.floor if is_published else np.round
    if not is_published:  # a head rounded first keeps the ratio closest to the factor
        head = np.round(min(head, len(classes[-1]) / imbalance_factor))
    steps = max(len(classes) - 1 - is_published, 1)
    sizes = rounded(head * imbalance_factor ** (np.arange(len(classes)) / steps))
    pairs = zip(classes, sizes, strict=True)
    return np.sort(np.concatenate([members[: max(int(size), 1)] for members, size in pairs]))


def _shuffled_classes(
    labels: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, Int[np.ndarray, " m"]]]:
    if not len(labels):
        return []
    sizes = np.bincount(labels)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    streams = rng.spawn(len(sizes))
    return [(label, streams[label].permutation(part)) for label, part in enumerate(members)]


def _apportion(size: int, shares: np.ndarray) -> Int[np.ndarray, " parts"]:
    exact = shares * size
    counts: np.ndarray = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: size - counts.sum()]] += 1
    while size and (counts == 0).any():
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return counts
