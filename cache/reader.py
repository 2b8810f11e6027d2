"""The reading half of a store."""

import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np

from cache.backend import index, operations, saliency
from cache.backend.claims import Claims
from cache.backend.directory import DATA
from cache.backend.environment import attach, detach
from cache.backend.eviction import Oldest, Policy
from cache.backend.operations import Status
from cache.backend.tables import Recipe, list_recipes
from cache.codecs import DEFAULT_CODEC, codec_named
from cache.errors import CacheError
from cache.keys import Scalar, check_keys, first_key, source_id
from cache.record import Record, parse

_PART = 8192
"""Log positions read in one transaction."""
_REQUESTS = 1024
"""Requests read in one transaction."""

Durability: TypeAlias = Literal["power", "process"]
DURABILITIES = get_args(Durability)
_OLDEST = Oldest()


class Reader:
    """What every store can do; `Store` adds what changes a cache."""

    def __init__(
        self,
        path: Path | str,
        *,
        codec: str = DEFAULT_CODEC,
        max_gib: float | None = None,
        policy: Policy | None = _OLDEST,
        durability: Durability = "power",
        readonly: bool = False,
    ) -> None:
        """Check the arguments; `open` or the first use looks at the directory.

        Args:
            path: Directory on a local disk, made by the first writer.
            codec: How images are written, a name of `cache.codec.CODECS`. Each record names its
                own, so any of them is read.
            max_gib: What all records may take of the disk, GiB; None is no limit.
            policy: What `put_many` evicts where they would take more; None refuses more.
            durability: What a `put_many` that has returned survives: loss of `power`, or only the
                death of any `process`, which saves waiting for the disk. Of the stores of a
                directory in one process the stronger wish counts for all.
            readonly: Never create or change anything.

        Raises:
            CacheError: If `codec` or `durability` is unknown or `max_gib` is no positive number.
        """
        if durability not in DURABILITIES:
            raise CacheError(
                f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}"
            )
        if max_gib is not None and not (max_gib > 0 and math.isfinite(max_gib)):
            raise CacheError(f"max_gib must be positive or None, got {max_gib}")
        self.path = Path(path).expanduser().resolve()
        self.codec, self.max_gib, self.policy, self.readonly = codec, max_gib, policy, readonly
        self.durability: Durability = durability
        self._codec = codec_named(codec)
        is_synced = not readonly and durability == "power"
        self._environment = attach(self.path, writable=not readonly, sync=is_synced)
        weakref.finalize(self, detach, self._environment)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments: an environment must not leave its process."""
        names = ("codec", "max_gib", "policy", "durability", "readonly")
        options = {name: getattr(self, name) for name in names}
        return partial(type(self), **options), (self.path,)

    def open(self) -> Self:
        """Open the cache now, and make it where it is missing, so that a bad path is said early.

        Raises:
            CacheError: If the path is no cache and cannot become one.
        """
        self._environment.open()
        return self

    def close(self) -> None:
        """Give the files back; the next use opens them again."""
        self._environment.close()

    def __enter__(self) -> Self:
        """The store itself; nothing is opened."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __len__(self) -> int:
        """Number of records."""
        with self._environment.transaction() as (txn, tables):
            return int(txn.stat(tables.records)["entries"])

    def get(self, key: bytes) -> Record | None:
        """The record under `key` with its image decoded, None if there is none.

        Raises:
            CorruptRecordError: If its bytes are not what was written.
        """
        record = self.inspect(key)
        if record is not None:
            _ = record.image  # decoded here, where it can be said
        return record

    def get_request(self, key: bytes) -> dict[str, Scalar] | None:
        """The request of the record under `key`, its image not decoded; None if there is none."""
        stored = self.inspect(key)
        return None if stored is None else stored.request

    def inspect(self, key: bytes) -> Record | None:
        """All about the record under `key`, its image still encoded; None if there is none.

        Raises:
            CorruptRecordError: If its bytes are not what was written.
        """
        check_keys([key])
        with self._environment.transaction(buffers=True) as (txn, tables):
            value = txn.get(key, db=tables.records)
            return None if value is None else parse(key, value)

    def find(self, prefix: str, limit: int = 2) -> list[bytes]:
        """At most `limit` keys whose hexadecimal form starts with `prefix`, ascending.

        Raises:
            CacheError: If `prefix` is not hexadecimal or longer than a key.
        """
        first = first_key(prefix)
        with self._environment.transaction() as (txn, tables):
            return operations.keys_from(txn, tables, first, prefix.lower(), limit)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each of `keys` has a record, all seen at one moment."""
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            return operations.are_present(txn, tables, keys)

    def status(self, keys: Sequence[bytes]) -> list[Status]:
        """What became of each of `keys`, all seen at one moment; a dead claim counts as free."""
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            held = Claims(txn, tables, time.time())
            return [operations.status_of(txn, tables, held, key) for key in keys]

    def tail(self, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]:
        """Positions above `after` with their keys, in the order of arrival, at most `limit`."""
        found: list[tuple[int, bytes]] = []
        wanted = math.inf if limit is None else limit
        while len(found) < wanted:
            size = int(min(_PART, wanted - len(found)))
            with self._environment.transaction() as (txn, tables):
                part = index.read_log_after(txn, tables, found[-1][0] if found else after, size)
            found += part
            if len(part) < size:
                break
        return found

    def position(self) -> int:
        """The last position of the log, 0 when it is empty."""
        with self._environment.transaction() as (txn, tables):
            return index.last_position(txn, tables)

    def sample(
        self, rng: np.random.Generator, n: int, recipe: Mapping[str, Scalar] | None = None
    ) -> list[bytes]:
        """`n` keys drawn uniformly and with replacement; none where nothing matches.

        Args:
            rng: Decides the draw, together with what the cache holds and how it came there.
            n: How many.
            recipe: Only records whose recipe has these fields with these values, such as
                `{"method": "diff_mix"}` or all of `recipe_of(request)`; None is every record.
        """
        with self._environment.transaction() as (txn, tables):
            return index.sample(txn, tables, rng, n, recipe)

    def recipes(self) -> list[Recipe]:
        """Every recipe with how many records of it there are."""
        with self._environment.transaction() as (txn, tables):
            return list_recipes(txn, tables)

    def requests(
        self, recipe: Mapping[str, Scalar] | None = None
    ) -> Iterator[tuple[bytes, dict[str, Scalar]]]:
        """Keys and requests of the records that match, oldest first; images are not looked at.

        What is evicted meanwhile, or has no request that can be read, is left out.

        Args:
            recipe: As for `sample`.
        """
        with self._environment.transaction() as (txn, tables):
            positions = index.positions_of_recipe(txn, tables, recipe)
        for start in range(0, len(positions), _REQUESTS):
            part = positions[start : start + _REQUESTS]
            with self._environment.transaction(buffers=True) as (txn, tables):
                found = operations.requests_at(txn, tables, part)
            yield from found

    def by_source(self, source_digest: str) -> list[bytes]:
        """Keys of the records whose request names that `source_digest`, oldest first."""
        with self._environment.transaction() as (txn, tables):
            positions = index.positions_of_source(txn, tables, source_id(source_digest))
            rows = [index.row_at(txn, tables, position) for position in positions]
        return [row.key for row in rows if row is not None]

    def get_saliency(self, version: str, source_digest: str) -> bytes | None:
        """The saliency map of a source image, None if there is none.

        Raises:
            CorruptRecordError: If its bytes are not what was written.
        """
        with self._environment.transaction() as (txn, tables):
            return saliency.get(txn, tables, version, source_digest)

    def is_rejected(self, key: bytes) -> bool:
        """Whether `key` was rejected and has no record."""
        return self.status([key]) == ["rejected"]

    def stats(self) -> dict[str, Any]:
        """Counts and sizes, all seen at one moment; takes as long however large the cache is."""
        with self._environment.transaction() as (txn, tables):
            found = operations.statistics(txn, tables, time.time())
        file_bytes = (self.path / DATA).stat().st_size
        return {
            "path": str(self.path),
            "max_gib": self.max_gib,
            "file_bytes": file_bytes,
            **found,
        }

    def _check_writable(self) -> None:
        if self.readonly:
            raise CacheError(f"store must not be readonly to change {self.path}")
