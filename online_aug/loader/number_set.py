"""A set of numbers that finds its n-th smallest without sorting."""

import numpy as np

_BLOCK = 1024


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
