"""Names of many files in little memory: one run of bytes, as an index keeps them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Int

_PART = 4096
_END = b"\0"  # no file's name holds one


class Names(Sequence[str]):
    """Names of files in an order."""

    def __init__(self, content: bytes) -> None:
        """Take the names as the system knows them, each ended by a zero."""
        assert content.endswith(_END) or not content
        self.content = content

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Return the names of some strings.

        Example:
            >>> names = Names.of(["cat/0.png", "dog/0.png"])
            >>> len(names), names[1], list(names[:1])
            (2, 'dog/0.png', ['cat/0.png'])
        """
        joined = "\0".join([*names, ""])
        return cls(os.fsencode(joined))

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content}

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | Int[np.ndarray, " m"]) -> "Names": ...
    def __getitem__(self, index: int | slice | Int[np.ndarray, " m"]) -> "str | Names":
        """Return one as a string, or some of them."""
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(len(self))
            return Names(self.content[self._ends[start] : self._ends[max(start, stop)]])
        if isinstance(index, slice | np.ndarray):
            starts, stops = self._ends[:-1][index].tolist(), self._ends[1:][index].tolist()
            content = self.content
            return Names(b"".join([content[a:b] for a, b in zip(starts, stops, strict=True)]))
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} names, got index {index}")
        place = index % len(self)
        return os.fsdecode(self.content[self._ends[place] : self._ends[place + 1] - 1])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PART):
            yield from os.fsdecode(self[start : start + _PART].content).split("\0")[:-1]

    def __eq__(self, other: object) -> bool:
        """Tell whether another sequence of this kind holds the same names in the same order."""
        return self.content == other.content if isinstance(other, Names) else False

    __hash__ = None  # type: ignore[assignment] # as of lists

    def __repr__(self) -> str:
        return f"<{len(self)} names of files>"

    def __add__(self, other: "Names") -> "Names":
        """Return these names and then the others."""
        return Names(self.content + other.content)

    def ends_with(self, suffix: str) -> Bool[np.ndarray, " n"]:
        """Tell which names have an ending of ASCII letters, in capitals or not."""
        letters = np.frombuffer(self.content.lower(), np.uint8)
        wanted = suffix.lower().encode("ascii")
        found = np.diff(self._ends) > len(wanted)
        ends = self._ends[1:][found] - 1
        same = np.ones(len(ends), np.bool_)
        for place, letter in enumerate(reversed(wanted), 1):
            same &= letters[ends - place] == letter
        found[found] = same
        return found

    def places_in(self, other: "Names") -> Int[np.ndarray, " n"]:
        """Return the place of each name among others; -1 for one that is not there."""
        if self == other:
            return np.arange(len(self))
        own, theirs = self._hashes(), other._hashes()
        order = np.argsort(theirs, kind="stable")
        if not len(order):
            return np.full(len(own), -1)
        ranks = theirs[order].searchsorted(own)
        ranks[ranks == len(order)] = 0
        places = order[ranks]
        places[theirs[places] != own] = -1
        known = np.flatnonzero(places >= 0)
        for start in range(0, len(known), _PART):  # two names may share a hash
            part = known[start : start + _PART]
            pairs = zip(self[part]._each(), other[places[part]]._each(), strict=True)
            places[part[[one != another for one, another in pairs]]] = -1
        return places

    def _each(self) -> list[bytes]:
        return self.content.split(_END)[:-1]

    def _hashes(self) -> Int[np.ndarray, " n"]:
        parts = (self[start : start + _PART]._each() for start in range(0, len(self), _PART))
        return np.fromiter((hash(name) for part in parts for name in part), np.int64, len(self))

    @cached_property
    def _ends(self) -> Int[np.ndarray, " m"]:
        """The place after each name's zero, and a zero before all."""
        ends = np.flatnonzero(np.frombuffer(self.content, np.uint8) == 0) + 1
        kind = np.int64 if len(self.content) >= 2**31 else np.int32
        return np.concatenate([[0], ends]).astype(kind)
