"""The plan of a run: every request by its number, computed when it is asked for.

Request n is variant `n // images` of an image that a keyed permutation chooses; the same goes
backwards from the fields of a record to its number. So a plan takes a few bytes of each image.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from jaxtyping import Bool, Integer

from cache import Scalar
from online_aug.file_digests.digests import Digests
from online_aug.methods import Part, Source, draw_part
from online_aug.planning.listed import DIGEST_BYTES, ListedRequests, Numbers, View
from online_aug.planning.permutation import Permutation
from online_aug.request import SPREAD_BYTES, GenerationRequest
from online_aug.seeding import numpy_rng

_KEPT = 4096
"""Requests that are kept after they were computed, as the next step asks for their keys again."""
_TRIED = 16
"""Requests whose keys are part of a plan's digest."""
_NOT_COMPARED = {"resources", "saliency", "strengths"}
"""Fields of a context that say nothing of requests, or are digested by what they follow from."""


class Place(NamedTuple):
    """An image and the number of a variant of it."""

    image: int
    """Its place among the distinct images, in the order of their digests."""
    variant: int


class Images:
    """The distinct training images, in ascending order of their digests, without pixels."""

    def __init__(self, digests: Digests, labels: Integer[np.ndarray, "_"]) -> None:
        """Take images; copies of one count once, with the label of the last."""
        places = digests.places
        self._places, self.labels = places, labels[places.indices]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> "Images":
        """Return the images of some sources."""
        labels = np.array([source.label for source in sources], np.int64)
        return cls(Digests.of(source.digest for source in sources), labels)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Source:
        """Return an image."""
        return Source(digest=self._places.digests[place], label=int(self.labels[place]))

    def place(self, digest: str) -> int | None:
        """Return the place of an image; None if there is none with this digest."""
        try:
            row = np.frombuffer(bytes.fromhex(digest), np.uint8)
        except ValueError:
            return None
        if len(row) != DIGEST_BYTES:
            return None
        place = int(self._places.ranks(row[None])[0])
        return None if place < 0 else place

    def contain(self, digests: Sequence[str]) -> Bool[np.ndarray, "_"]:
        """Tell for each digest whether it is one of theirs."""
        rows = digests.rows if isinstance(digests, Digests) else Digests.of(digests).rows
        return np.asarray(self._places.ranks(rows) >= 0)

    def first_of_classes(self, count: int) -> list[Source]:
        """Return at most `count` images of each class, the first in the order of digests."""
        order = np.argsort(self.labels, kind="stable")
        labels = self.labels[order]
        places_in_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
        return [self[int(place)] for place in np.sort(order[places_in_class < count])]

    def spread(self, places: Numbers) -> Numbers:
        """Return an evenly spread number of each of these images."""
        rows = np.ascontiguousarray(self._places.digests.rows[places, :SPREAD_BYTES])
        return np.asarray(rows.view(f">u{SPREAD_BYTES}")[:, 0], np.int64)

    def to_bytes(self) -> bytes:
        """Return digests and labels."""
        arrays = (self._places.digests.rows, self.labels.astype(np.int64))
        return b"".join(array.tobytes() for array in arrays)


class Plan(Sequence[GenerationRequest]):
    """All requests of a run, in the order in which images are made.

    Each variant goes once through all images, in a random order of its own. A request depends on
    the seed, the source image and the variant number, and on the saliency table and the class sizes
    if the method uses them. So an image that is in two data sets or runs asks for the same there.
    Copies of an image in one data set share their requests. If there are several methods, one is
    drawn for each request by its weight; the request is the one which that method would plan alone.
    """

    def __init__(self, parts: Sequence[Part], images: Images, variants_per_image: int) -> None:
        """Take what decides the requests; none is made yet.

        Args:
            parts: At least one; all contexts have the same seed.
            images: Training images.
            variants_per_image: Requests for each image.
        """
        self._begin(tuple(parts), images, variants_per_image)

    def _begin(self, parts: tuple[Part, ...], images: Images, variants: int) -> None:
        self.parts, self.images, self.variants_per_image = parts, images, variants
        self._seed = parts[0].context.seed
        self._kept = lru_cache(_KEPT)(self._request)
        self._orders = lru_cache(None)(self._order)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.parts, self.images, self.variants_per_image

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._begin(*state)

    def __len__(self) -> int:
        return len(self.images) * self.variants_per_image

    @overload
    def __getitem__(self, number: int) -> GenerationRequest: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[GenerationRequest]: ...
    def __getitem__(self, number: int | slice) -> GenerationRequest | Sequence[GenerationRequest]:
        """Return a request, or a view of several."""
        if isinstance(number, slice):
            return View(self, range(len(self))[number])
        request: GenerationRequest = self._kept(range(len(self))[number])
        return request

    def __iter__(self) -> Iterator[GenerationRequest]:
        return map(self._request, range(len(self)))

    @property
    def knows_targets(self) -> bool:
        """Whether target classes are known without making requests."""
        return all(part.method.keeps_class for part in self.parts)

    def variant(self, number: int) -> int:
        """Return the variant of a request."""
        return number // len(self.images)

    def place(self, number: int) -> Place:
        """Return the image and variant of a request."""
        variant, at = divmod(number, len(self.images))
        return Place(self._orders(variant)[at], variant)

    def number(self, source_digest: str, variant: int) -> int | None:
        """Return the number of a request by its image and variant; None if there is none."""
        image = self.images.place(source_digest)
        if image is None or variant not in range(self.variants_per_image):
            return None
        return variant * len(self.images) + self._orders(variant).index(image)

    def number_of(self, key: bytes, fields: Mapping[str, Scalar]) -> int | None:
        """Return the number of the request that has this key; None if there is none.

        Args:
            key: A cache key.
            fields: Those of the request that it is the key of; they say where to look.
        """
        digest, variant = fields.get("source_digest"), fields.get("variant")
        if not isinstance(digest, str) or not isinstance(variant, int):
            return None
        number = self.number(digest, variant)
        return number if number is not None and self[number].key == key else None

    def variants(self, source_digest: str) -> list[int]:
        """Return the requests made from one source image, ascending."""
        image = self.images.place(source_digest)
        if image is None:
            return []
        orders = (self._orders(variant) for variant in range(self.variants_per_image))
        return [n * len(self.images) + order.index(image) for n, order in enumerate(orders)]

    def counts(self, source_digests: Sequence[str]) -> Numbers:
        """Return how many requests are made from each source image."""
        return np.where(self.images.contain(source_digests), self.variants_per_image, 0)

    def images_of(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Return the places of the images, and the variants, of many requests."""
        variants, places = np.divmod(numbers, max(1, len(self.images)))
        images = np.empty_like(places)
        for variant in np.unique(variants):
            of_it = variants == variant
            images[of_it] = self._orders(int(variant)).at(places[of_it])
        return images, variants

    def spread(self, numbers: Numbers) -> Numbers:
        """Return `GenerationRequest.spread` of many requests without making them."""
        images, variants = self.images_of(numbers)
        return np.asarray(self.images.spread(images) + variants)

    def target_labels(self, numbers: Numbers) -> Numbers:
        """Return the target class of each request; costly if a method draws it."""
        if self.knows_targets:
            return np.asarray(self.images.labels[self.images_of(numbers)[0]], np.int64)
        return np.array([self[int(number)].target_label for number in numbers], np.int64)

    @property
    def recipes(self) -> list[dict[str, Scalar]]:
        """Fields that the recipes of all requests of a method have, for each method."""
        return [
            {
                "method": part.method.name,
                "generator_fingerprint": part.context.generator_fingerprint,
            }
            for part in self.parts
        ]

    @cached_property
    def digest(self) -> bytes:
        """Digest of all that decides the requests: two plans with the same are equal."""
        digest = blake2b(self.images.to_bytes(), digest_size=DIGEST_BYTES)
        for part in self.parts:
            method, context = part.method, part.context
            settings = method.settings.model_dump(mode="json", exclude={"name"})
            shared = {n: v for n, v in vars(context).items() if n not in _NOT_COMPARED}
            version = context.saliency.version if context.saliency else None
            strengths = context.strengths and context.strengths.learned
            code = (method.name, method.version, method.code_digest)
            described = [*code, settings, shared, version, strengths]
            digest.update(json.dumps(described).encode())
        step = max(1, len(self) // _TRIED)
        tried = [request.key.hex() for request in self[::step]]
        digest.update(json.dumps([self._seed, self.variants_per_image, tried]).encode())
        return digest.digest()

    def part(self, source: Source, variant: int) -> Part:
        """Return the method of a request with its context."""
        if len(self.parts) == 1:
            return self.parts[0]
        return draw_part(self.parts, numpy_rng("method", self._seed, variant, source.digest))

    def trials(self) -> ListedRequests:
        """Return only the requests whose images decide a strength: a few of each class."""
        known = [part.context.strengths for part in self.parts]
        places = {place for strengths in known if strengths for place in strengths.trials}
        numbers = sorted(n for place in places if (n := self.number(*place)) is not None)
        pairs = ((self._source(number), self.place(number).variant) for number in numbers)
        are_trials = [self.part(*pair).is_trial(*pair) for pair in pairs]
        return ListedRequests(
            [self[n] for n, is_one in zip(numbers, are_trials, strict=True) if is_one]
        )

    def _source(self, number: int) -> Source:
        return self.images[self.place(number).image]

    def _request(self, number: int) -> GenerationRequest:
        image, variant = self.place(number)
        source = self.images[image]
        part = self.part(source, variant)
        rng = numpy_rng("plan", self._seed, variant, source.digest)
        return part.method.plan(source, variant, part.context, rng)

    def _order(self, variant: int) -> Permutation:
        return Permutation(len(self.images), "order", self._seed, variant)


Requests: TypeAlias = Plan | ListedRequests
"""A plan, or the few requests of one that are listed."""
