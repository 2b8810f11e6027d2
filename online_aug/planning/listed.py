"""Requests that are listed, a choice of others, and several plans one behind another.

A list is for what is few or has no order of its own: trials of strengths, imported images.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar, overload

import numpy as np
from jaxtyping import Int64

from cache import Scalar
from online_aug.request import GenerationRequest, Servable

S = TypeVar("S", bound=Servable, covariant=True)
Item = TypeVar("Item")
Numbers = Int64[np.ndarray, "_"]
DIGEST_BYTES = 16
"""Length of the digest of a plan."""


class Numbered(Protocol[S]):
    """Images to serve by their numbers, which are found again from the fields of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> S:
        """Return an image by its number."""

    def number_of(self, key: bytes, fields: Mapping[str, Scalar]) -> int | None:
        """Return the number of the image with this key and these fields; None if there is none."""

    def variants(self, source_digest: str) -> list[int]:
        """Return the images made from one source image, ascending."""

    def counts(self, source_digests: Sequence[str]) -> Numbers:
        """Return how many images are made from each source image."""


class View(Sequence[Item]):
    """Some items of a sequence, each taken from there when it is asked for."""

    def __init__(self, whole: Sequence[Item], numbers: Sequence[int]) -> None:
        """Take the sequence and the places in it."""
        self._whole, self._numbers = whole, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        """Return an item, or a view of several."""
        if isinstance(place, slice):
            return View(self._whole, self._numbers[place])
        return self._whole[int(self._numbers[place])]


class Listed(Sequence[S]):
    """Images in a list, with indexes of their keys and sources."""

    def __init__(self, images: Sequence[S]) -> None:
        """Number images from 0; of equal ones the last one's number is found."""
        self._images = list(images)
        self._numbers = {image.key: number for number, image in enumerate(self._images)}
        self._variants: defaultdict[str | None, list[int]] = defaultdict(list)
        for number, image in enumerate(self._images):
            self._variants[image.source_digest].append(number)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, number: int) -> S: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[S]: ...
    def __getitem__(self, number: int | slice) -> S | Sequence[S]:
        """Return an image, or a list of several."""
        return self._images[number]

    @property
    def digest(self) -> bytes:
        """Digest of the keys in their order."""
        keys = b"".join(image.key for image in self._images)
        return blake2b(keys, digest_size=DIGEST_BYTES).digest()

    def number_of(self, key: bytes, fields: Mapping[str, Scalar]) -> int | None:
        """Return the number of an image by its key; None if it is not in the list."""
        return self._numbers.get(key)

    def variants(self, source_digest: str) -> list[int]:
        """Return the images made from one source image, ascending."""
        return self._variants.get(source_digest, [])

    def counts(self, source_digests: Sequence[str]) -> Numbers:
        """Return how many images are made from each source image."""
        if not self._images:
            return np.zeros(len(source_digests), np.int64)
        return np.array([len(self.variants(digest)) for digest in source_digests], np.int64)


class ListedRequests(Listed[GenerationRequest]):
    """Requests in a list, which a generation process can make."""

    knows_targets = True

    def variant(self, number: int) -> int:
        """Return the variant of a request."""
        return self[number].variant

    def spread(self, numbers: Numbers) -> Numbers:
        """Return `GenerationRequest.spread` of requests."""
        return np.array([self[number].spread for number in numbers.tolist()], np.int64)

    def target_labels(self, numbers: Numbers) -> Numbers:
        """Return the target class of requests."""
        return np.array([self[number].target_label for number in numbers.tolist()], np.int64)


class Served(Sequence[Servable]):
    """Several plans and lists as one sequence; more may follow while it is used."""

    def __init__(self, parts: Sequence[Numbered[Servable]] = ()) -> None:
        """Take parts, in order."""
        self.parts: list[Numbered[Servable]] = []
        """The plans and lists."""
        self._ends: list[int] = []
        for part in parts:
            self.append(part)

    def append(self, part: Numbered[Servable]) -> None:
        """Add a plan behind those there are."""
        self.parts.append(part)
        self._ends.append(len(self) + len(part))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> Servable: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Servable]: ...
    def __getitem__(self, number: int | slice) -> Servable | Sequence[Servable]:
        """Return an image, or a view of several."""
        numbers = range(len(self))[number]
        if isinstance(numbers, range):
            return View(self, numbers)
        which = bisect_right(self._ends, numbers)
        return self.parts[which][numbers - self.first(which)]

    def __iter__(self) -> Iterator[Servable]:
        return (self[number] for number in range(len(self)))

    def first(self, which: int) -> int:
        """Return the first number of a part."""
        return self._ends[which - 1] if which else 0

    def number_of(self, key: bytes, fields: Mapping[str, Scalar]) -> int | None:
        """Return the number of an image, in the newest part that has it; None if none has."""
        for which in reversed(range(len(self.parts))):
            number = self.parts[which].number_of(key, fields)
            if number is not None:
                return self.first(which) + number
        return None

    def variants(self, source_digest: str) -> list[int]:
        """Return the images made from one source image, ascending."""
        return [
            self.first(which) + number
            for which, part in enumerate(self.parts)
            for number in part.variants(source_digest)
        ]

    def counts(self, source_digests: Sequence[str], first: int = 0) -> Numbers:
        """Return how many images are made from each source image, from number `first` on."""
        found = np.zeros(len(source_digests), np.int64)
        for which, part in enumerate(self.parts):
            if self.first(which) >= first:
                found += part.counts(source_digests)
        return found
