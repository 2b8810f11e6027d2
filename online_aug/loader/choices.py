"""Ways to choose among generated images: any of a set, each in turn, or by their class."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from online_aug.labels import rare_class_weights
from online_aug.loader.slots import Kind
from online_aug.planning import Permutation

_BLOCK = 1024

Take = Callable[[np.random.Generator, Sequence[int] | None], tuple[Kind, int] | None]
"""Takes one of some requests, or of all (`SamplePool.take`)."""


class NumberSet:
    """Numbers from 0 to `size - 1`, of which any may be in the set.

    One byte a number says whether it is in; a Fenwick tree over blocks of them (doi:10.1002/
    spe.4380240306) sums how many are. Adding, removing and finding the n-th take the logarithm of
    the size.
    """

    def __init__(self, size: int = 0) -> None:
        """Begin empty."""
        self._is_in = bytearray()
        self._tree: list[int] = [0]
        self._count = 0
        self.grow(size)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return bool(self._is_in[number])

    def __getitem__(self, place: int) -> int:
        """Return the number at a place in ascending order.

        Raises:
            IndexError: If there are not that many.
        """
        if not 0 <= place < self._count:
            raise IndexError(f"place must be below {self._count}, got {place}")
        block, tree = 0, self._tree
        step = 1 << (len(tree) - 1).bit_length()
        while step := step // 2:
            if block + step < len(tree) and tree[block + step] <= place:
                block += step
                place -= tree[block]
        first = block * _BLOCK
        part = np.frombuffer(self._is_in, np.uint8, min(_BLOCK, len(self._is_in) - first), first)
        return first + int(part.nonzero()[0][place])

    def grow(self, size: int) -> None:
        """Allow numbers below `size` too."""
        self._is_in.extend(bytes(max(0, size - len(self._is_in))))
        self._sum()

    def add(self, number: int) -> None:
        """Put a number in; nothing changes if it is."""
        if not self._is_in[number]:
            self._is_in[number] = 1
            self._add(number, 1)

    def update(self, numbers: Int[np.ndarray, " n"]) -> None:
        """Put many numbers in."""
        np.frombuffer(self._is_in, np.uint8)[numbers] = 1
        self._sum()

    def discard(self, number: int) -> None:
        """Take a number out; nothing changes if it is not in."""
        if self._is_in[number]:
            self._is_in[number] = 0
            self._add(number, -1)

    def discard_below(self, number: int) -> None:
        """Take out all numbers below this one."""
        self._is_in[:number] = bytes(number)
        self._sum()

    def _add(self, number: int, change: int) -> None:
        self._count += change
        place, tree = number // _BLOCK + 1, self._tree
        while place < len(tree):
            tree[place] += change
            place += place & -place

    def _sum(self) -> None:
        counts = [
            self._is_in.count(1, at, at + _BLOCK) for at in range(0, len(self._is_in), _BLOCK)
        ]
        tree = [0, *counts]
        for place in range(1, len(tree)):
            above = place + (place & -place)
            if above < len(tree):
                tree[above] += tree[place]
        self._tree, self._count = tree, sum(counts)


class Union:
    """The images generated from the images of a set, each once in a round, in an order by seed."""

    def __init__(
        self,
        digests: Sequence[str],
        counts: Int[np.ndarray, " n"],
        variants: Callable[[str], Sequence[int]],
        seed: int,
    ) -> None:
        """Count what there is to serve.

        Args:
            digests: Digests of the real images.
            counts: How many requests are made from each.
            variants: Returns the requests made from an image, ascending.
            seed: Decides the order of each round.
        """
        self._digests, self._variants, self._seed = digests, variants, seed
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def images(
        self, turns: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return the real image whose turn it is, and which of its own generated ones.

        Args:
            turns: Which of all added samples each is, counted over the epochs from 0.
        """
        rounds, places = np.divmod(turns, len(self))
        chosen = np.empty(len(turns), np.int64)
        for number in np.unique(rounds):
            order = Permutation(len(self), "union", self._seed, int(number))
            chosen[rounds == number] = order.at(places[rounds == number])
        images = np.searchsorted(self._ends, chosen, side="right")
        return images, chosen - (self._ends - np.diff(self._ends, prepend=0))[images]

    def request(self, image: int, variant: int) -> int:
        """Return the number of an image's own request."""
        return self._variants(self._digests[image])[variant]


class ByClass:
    """Draws the class of a sample first, rare ones more often, then an image towards it."""

    def __init__(self, class_sizes: Sequence[int], balance: float) -> None:
        """Give a class of n training images the chance 1 / (n + 1)^`balance`."""
        weights = rare_class_weights(tuple(class_sizes), balance)
        assert weights is not None, "without a balance images are drawn alike"
        self._weights = np.asarray(weights)
        self._numbers: list[list[int]] = [[] for _ in class_sizes]

    def begin(self, numbers: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> None:
        """Begin with these requests and their target classes."""
        order = np.lexsort((numbers, labels))
        ends = np.searchsorted(labels[order], np.arange(len(self._numbers)), side="right")
        parts = np.split(numbers[order], ends)
        self._numbers = [part.tolist() for part in parts[: len(self._numbers)]]

    def add(self, number: int, label: int) -> None:
        """Add a request; nothing changes if it is there."""
        numbers = self._numbers[label]
        place = bisect_left(numbers, number)
        if numbers[place : place + 1] != [number]:
            numbers.insert(place, number)

    def discard_below(self, oldest: int) -> None:
        """Take out all requests below this number."""
        for numbers in self._numbers:
            del numbers[: bisect_left(numbers, oldest)]

    def take(self, rng: np.random.Generator, take: Take) -> tuple[Kind, int] | None:
        """Take an image of a drawn class; a class without any is drawn no more."""
        weights = np.where([bool(numbers) for numbers in self._numbers], self._weights, 0.0)
        while weights.any():
            label = int(rng.choice(len(weights), p=weights / weights.sum()))
            if (taken := take(rng, self._numbers[label])) is not None:
                return taken
            weights[label] = 0.0
        return None
