"""A random order of any number of things that takes no memory: a keyed permutation.

A Feistel network permutes the numbers below a power of four; what falls outside the wanted size is
permuted again until it is inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite
Domains, 2002). It is not for secrets.
"""

from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np
from jaxtyping import Int64

from online_aug.seeding import seed_of

_ROUNDS = 6
_WORD = 2**64 - 1
_FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
"""Odd constants that spread the bits of a number by multiplication."""
Number = TypeVar("Number", int, np.ndarray)


class Permutation(Sequence[int]):
    """The numbers from 0 to `size - 1`, each once, in an order that depends on `entropy` alone.

    Example:
        >>> order = Permutation(5, "order", 0)
        >>> sorted(order), order.index(order[3])
        ([0, 1, 2, 3, 4], 3)
    """

    def __init__(self, size: int, *entropy: int | str) -> None:
        """Take the size, and what the order depends on."""
        self._size = size
        self._half = max(1, -(-max(0, size - 1).bit_length() // 2))
        self._mask = 2**self._half - 1
        self._keys = [seed_of("permutation", *entropy, number) for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        """Return the number at a place, or those of a range of places."""
        if isinstance(place, slice):
            return [self[each] for each in range(self._size)[place]]
        number = self._forth(range(self._size)[place])
        while number >= self._size:
            number = self._forth(number)
        return number

    def index(self, value: int, start: int = 0, stop: int | None = None) -> int:
        """Return the place of a number.

        Raises:
            ValueError: If it is not one of them.
        """
        if value not in range(self._size):
            raise ValueError(f"number must be below {self._size}, got {value}")
        place = self._back(value)
        while place >= self._size:
            place = self._back(place)
        if place not in range(self._size)[start:stop]:
            raise ValueError(f"place of {value} must be in the range, it is {place}")
        return place

    def at(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the numbers at many places, which must be valid."""
        numbers = self._forth(places.astype(np.uint64))
        while (outside := numbers >= self._size).any():
            numbers[outside] = self._forth(numbers[outside])
        return numbers.astype(np.int64)

    def places(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the places of many numbers, which must be valid."""
        places = self._back(numbers.astype(np.uint64))
        while (outside := places >= self._size).any():
            places[outside] = self._back(places[outside])
        return places.astype(np.int64)

    def _forth(self, number: Number) -> Number:
        left, right = number >> self._half, number & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right, key) & self._mask)
        permuted: Number = left << self._half | right
        return permuted

    def _back(self, number: Number) -> Number:
        left, right = number >> self._half, number & self._mask
        for key in reversed(self._keys):
            left, right = right ^ (_mixed(left, key) & self._mask), left
        permuted: Number = left << self._half | right
        return permuted


def _mixed(number: Number, key: int) -> Number:
    # Python's integers do not end at 64 bits, NumPy's do: the same comes out of both.
    mixed = ((number ^ key) * _FIRST) & _WORD
    mixed = ((mixed ^ (mixed >> 32)) * _SECOND) & _WORD
    return mixed ^ (mixed >> 32)
