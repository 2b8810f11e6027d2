"""Digests of many images in little memory: 16 bytes each, not a string of 32 letters.

`Digests` is a sequence of hexadecimal strings like any other, and its `places` a mapping from them
to their indices, by binary search. Whoever works on all of them at once takes the bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from jaxtyping import Int, Shaped, UInt8

_BYTES = 16
_ROW = (
    f"S{_BYTES}"  # compares all its bytes; only its items, taken one by one, lose zeros at the end
)
_PART = 4096
Rows = UInt8[np.ndarray, "n 16"]
"""The bytes of digests, one a row."""


class Digests(Sequence[str]):
    """Digests of images in an order; an item is a hexadecimal string."""

    def __init__(self, rows: Rows) -> None:
        """Take the bytes of the digests, which are not copied."""
        self.rows = np.require(rows, np.uint8, "C")
        assert self.rows.shape == (len(rows), _BYTES), self.rows.shape

    @classmethod
    def of(cls, digests: Iterable[str]) -> "Digests":
        """Return the digests that hexadecimal strings stand for.

        Raises:
            ValueError: If one is not 32 hexadecimal digits.

        Example:
            >>> list(Digests.of(["00" * 16, "ab" * 16]))[1]
            'abababababababababababababababab'
        """
        each = [bytes.fromhex(digest) for digest in digests]
        if any(len(row) != _BYTES for row in each):
            raise ValueError(f"digests must be {2 * _BYTES} hexadecimal digits each")
        return cls(np.frombuffer(b"".join(each), np.uint8).reshape(-1, _BYTES))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | Int[np.ndarray, " m"]) -> "Digests": ...
    def __getitem__(self, index: int | slice | Int[np.ndarray, " m"]) -> "str | Digests":
        """Return one as a string, or some of them."""
        found = self.rows[index]
        return Digests(found) if found.ndim == 2 else found.tobytes().hex()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PART):
            letters = self.rows[start : start + _PART].tobytes().hex()
            yield from (letters[at : at + 2 * _BYTES] for at in range(0, len(letters), 2 * _BYTES))

    def __contains__(self, digest: object) -> bool:
        return digest in self.places

    def __eq__(self, other: object) -> bool:
        """Tell whether another sequence of this kind holds the same digests in the same order."""
        return np.array_equal(self.rows, other.rows) if isinstance(other, Digests) else False

    __hash__ = None  # type: ignore[assignment] # as of other arrays

    def __repr__(self) -> str:
        return f"<{len(self)} digests of images>"

    @property
    def sorted(self) -> "Digests":
        """The same digests in ascending order, each once."""
        return self.places.digests

    @cached_property
    def places(self) -> "Places":
        """Index of the last image with each digest."""
        rows = self.rows.view(_ROW)[:, 0]
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        is_last = np.ones(len(rows), np.bool_)
        is_last[:-1] = ordered[1:] != ordered[:-1]
        return Places(Digests(_as_bytes(ordered[is_last])), order[is_last].astype(np.int32))


class Places(Mapping[str, int]):
    """The index of an image with each digest, in ascending order of the digests."""

    def __init__(self, digests: Digests, indices: Int[np.ndarray, " n"]) -> None:
        """Take digests in ascending order, each once, and the index of an image with each."""
        self.digests, self.indices = digests, indices
        self._rows = digests.rows.view(_ROW)[:, 0]

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __getitem__(self, digest: str) -> int:
        """Return the index of the image with a digest."""
        (rank,) = self.ranks(_rows_of(digest)).tolist()
        if rank < 0:
            raise KeyError(digest)
        return int(self.indices[rank])

    def find(self, rows: Rows) -> Int[np.ndarray, " m"]:
        """Return the indices of images with these digests; -1 for one that is not here."""
        ranks = self.ranks(rows)
        return np.where(ranks < 0, -1, self.indices[ranks]) if len(self) else ranks

    def ranks(self, rows: Rows) -> Int[np.ndarray, " m"]:
        """Return the places of digests in the ascending order; -1 for one that is not here."""
        wanted = np.ascontiguousarray(rows).view(_ROW)[:, 0]
        if not len(self):
            return np.full(len(wanted), -1)
        ranks = self._rows.searchsorted(wanted)
        ranks[ranks == len(self)] = 0
        ranks[self._rows[ranks] != wanted] = -1
        return ranks


def _rows_of(digest: object) -> Rows:
    """Return the one row of a digest, or none if it is not one."""
    try:
        row = bytes.fromhex(digest) if isinstance(digest, str) else b""
    except ValueError:
        row = b""
    if row.hex() != digest or len(row) != _BYTES:
        raise KeyError(digest)
    return np.frombuffer(row, np.uint8).reshape(1, _BYTES)


def _as_bytes(rows: Shaped[np.ndarray, " n"]) -> Rows:
    return rows.view(np.uint8).reshape(-1, _BYTES)
