"""The store: a directory of generated images that processes share."""

import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np

from cache.backend import compaction, eviction, records, saliency, verify
from cache.backend.claims import Leases, Owner, Status
from cache.backend.directory import DATA
from cache.backend.environment import attach, detach
from cache.backend.eviction import Oldest, Policy, Quota
from cache.backend.saliency import Adopted, SaliencyMaps
from cache.backend.tables import Recipe
from cache.backend.verify import Progress, VerifyReport
from cache.codecs import DEFAULT_CODEC, codec_named
from cache.errors import CacheError
from cache.keys import Scalar, check_keys, digest_of
from cache.reader import Reader
from cache.record import Draft, Entry, Record
from cache.rejection import Rejection

Durability: TypeAlias = Literal["power", "process"]
_OLDEST = Oldest()


class Store:
    """Generated images under the digest of their request, shared by any number of processes.

    A store holds no open file until it is used, survives `fork`, and pickles as its arguments. Its
    methods may be called from several threads. Readers never wait for a writer.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from cache import request_key
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     entry = Entry({"method": "demo"}, np.zeros((8, 8, 3), np.uint8))
        ...     store.put_many([entry]), store.get(request_key(entry.request)).image.shape
        (1, (8, 8, 3))
    """

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
            path: Directory on a local disk, created by the first writer.
            codec: Name of the codec for new images; all are read.
            max_gib: Limit for all records and saliency maps, GiB; None is no limit.
            policy: What `put_many` evicts to stay within the limit; None refuses new records.
            durability: What a returned `put_many` survives: loss of `power`, or only the death of
                a `process`, which is faster. Within a process `power` wins.
            readonly: Never create or change anything.

        Raises:
            CacheError: If `codec` or `durability` is unknown or `max_gib` is not positive.
        """
        if durability not in (known := get_args(Durability)):
            raise CacheError(f"durability must be one of {', '.join(known)}, got {durability!r}")
        if max_gib is not None and not (max_gib > 0 and math.isfinite(max_gib)):
            raise CacheError(f"max_gib must be positive or None, got {max_gib}")
        self.path = Path(path).expanduser().resolve()
        self.codec, self.max_gib, self.policy, self.readonly = codec, max_gib, policy, readonly
        self.durability: Durability = durability
        self._codec = codec_named(codec)
        is_synced = not readonly and durability == "power"
        self._environment = attach(self.path, writable=not readonly, sync=is_synced)
        weakref.finalize(self, detach, self._environment)
        self._quota = Quota.in_gib(max_gib, policy)
        self._reader = Reader(self._environment)
        self._leases = Leases(self._environment)
        self._saliency = SaliencyMaps(self._environment, self._quota)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: an open environment must not leave its process."""
        names = ("codec", "max_gib", "policy", "durability", "readonly")
        return partial(type(self), **{name: getattr(self, name) for name in names}), (self.path,)

    def open(self) -> Self:
        """Open the cache now, and create it if it is missing, so that a bad path is found early.

        Raises:
            CacheError: If the path is not a cache and cannot become one.
        """
        self._environment.open()
        return self

    def close(self) -> None:
        """Close the files; the next use opens them again."""
        self._environment.close()

    def __enter__(self) -> Self:
        """Return the store; nothing is opened."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def __len__(self) -> int:
        """Return the number of records."""
        return self._reader.count()

    def get(self, key: bytes) -> Record | None:
        """Return the record under `key` with its image decoded, or None if there is none.

        Raises:
            CorruptRecordError: If its bytes have changed since they were written.
        """
        record = self._reader.inspect(key)
        if record is not None:
            _ = record.image  # decoded here, so that the error comes from this call
        return record

    def inspect(self, key: bytes) -> Record | None:
        """Return the record under `key`, its image not yet decoded; otherwise as `get`."""
        return self._reader.inspect(key)

    def find(self, prefix: str, limit: int = 2) -> list[bytes]:
        """Return at most `limit` keys that start with these hexadecimal digits, ascending."""
        return self._reader.find(prefix, limit)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Return whether each of `keys` has a record, all seen at one moment."""
        return self._reader.contains(keys)

    def status(self, keys: Sequence[bytes]) -> list[Status]:
        """Return what became of each of `keys`, all seen at one moment; a dead claim is free."""
        return self._reader.status(keys)

    def position(self) -> int:
        """Return the last position of the log, 0 if nothing was ever stored."""
        return self._reader.position()

    def tail(self, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]:
        """Return at most `limit` positions above `after` with their keys, in order of arrival."""
        return self._reader.tail(after, limit)

    def sample(
        self, rng: np.random.Generator, n: int, recipe: Mapping[str, Scalar] | None = None
    ) -> list[bytes]:
        """Draw `n` keys uniformly and with replacement; return no keys if nothing matches.

        Args:
            rng: Decides the draw, together with what the cache holds and how it came there.
            n: Number of keys.
            recipe: Fields that the recipes of the drawn records must have, such as
                `{"method": "diff_mix"}` or `recipe_of(request)`; None draws from all records.
        """
        return self._reader.sample(rng, n, recipe)

    def recipes(self) -> list[Recipe]:
        """Return every recipe with the number of its records."""
        return self._reader.recipes()

    def requests(
        self, recipe: Mapping[str, Scalar] | None = None, after: int = 0
    ) -> Iterator[tuple[int, bytes, dict[str, Scalar]]]:
        """Yield log positions above `after`, keys and requests, oldest first.

        Records that are evicted meanwhile, or whose request cannot be read, are left out; with
        `recipe` also those that do not match it, as in `sample`.
        """
        return self._reader.requests(recipe, after)

    def by_source(self, source_digest: str) -> list[bytes]:
        """Return the keys of the records made from a source, oldest first."""
        return self._reader.by_source(source_digest)

    def stats(self) -> dict[str, Any]:
        """Return counts and sizes, all seen at one moment. Fast however large the cache is."""
        found, size = self._reader.statistics(), (self.path / DATA).stat().st_size
        return {"path": str(self.path), "max_gib": self.max_gib, "file_bytes": size, **found}

    def put_many(self, entries: Sequence[Entry]) -> int:
        """Store the entries that are not there yet and return how many they were.

        One call is one transaction: records, log, indexes, counts, evictions and the end of all
        claims on the keys. After it has returned, power may fail (with the default `durability`).

        Raises:
            CacheError: If an entry cannot be stored; then none of the call is.
            CacheFullError: If there is no room under `max_gib` or on the disk; then none is.
        """
        self._check_writable()
        offered: dict[bytes, Entry] = {}
        for entry in entries:
            offered.setdefault(digest_of(entry.encoded_request), entry)
        keys, created = list(offered), time.time()
        missing = (key for key, there in zip(keys, self.contains(keys), strict=True) if not there)
        drafts = [Draft(offered[key], self._codec, created) for key in missing]
        return eviction.insert(self._environment, self._quota, keys, drafts)

    def put_records(self, records: Sequence[Record]) -> int:
        """Store records of another cache without encoding them again; otherwise as `put_many`."""
        self._check_writable()
        offered: dict[bytes, Record] = {}
        for stored in records:
            offered.setdefault(stored.key, stored)
        drafts = [Draft.copy(stored) for stored in offered.values()]
        return eviction.insert(self._environment, self._quota, list(offered), drafts)

    def note_served(self, keys: Sequence[bytes]) -> None:
        """Count records as served, once for each time they are named, in one transaction."""
        self._check_writable()
        check_keys(keys)
        with self._environment.transaction(write=True) as (txn, tables):
            records.note_served(txn, tables, keys)

    def evict(self, policy: Policy, *, count: int | None = None, to_gib: float = 0.0) -> int:
        """Evict records that are not pinned and return how many; others may write meanwhile.

        Args:
            policy: Decides what is evicted, and in which order.
            count: Most records to evict; None is no limit.
            to_gib: Stop when the cache takes no more than this, GiB.
        """
        self._check_writable()
        return eviction.evict(self._environment, policy, count=count, to_gib=to_gib)

    def drop_corrupt(self, key: bytes) -> bool:
        """Remove the record under `key` if it cannot be read; return whether it was removed.

        It is counted in `stats` as `corrupt`, and its request can be made again.
        """
        self._check_writable()
        check_keys([key])
        with self._environment.transaction(write=True) as (txn, tables):
            return records.drop_if_broken(txn, tables, key, time.time())

    def claim(self, keys: Sequence[bytes], owner: Owner, lease_s: float = 300) -> list[bytes]:
        """Claim the right to make `keys` and return those that are now the owner's, in order.

        Keys that are present, rejected or claimed by another living owner are left out. A claim
        ends with its lease, or at once when its process is gone. Claiming again renews it.

        Raises:
            CacheError: If `lease_s` is not positive.
        """
        self._check_writable()
        return self._leases.claim(keys, owner, lease_s)

    def release(self, keys: Sequence[bytes], owner: Owner) -> None:
        """End the owner's claims on `keys`; those of others stay."""
        self._check_writable()
        self._leases.release(keys, owner)

    def reject(self, key: bytes, request: Mapping[str, Scalar], rejection: Rejection) -> None:
        """End the claim on `key`; unless it has a record, note that it must not be made again.

        The first rejections of each reason keep their picture.

        Raises:
            CacheError: If `key` is not the key of `request`.
        """
        self._check_writable()
        self._leases.reject(key, request, rejection)

    def rejections(self, keys: Sequence[bytes] | None = None) -> dict[bytes, Rejection]:
        """Return why `keys` were rejected, as far as they were; all rejections for None."""
        return self._leases.rejections(keys)

    def pin(self, keys: Sequence[bytes], owner: Owner, lease_s: float = 300) -> None:
        """Keep the records under `keys` from eviction while owner and lease live.

        Pinning again renews the lease. A key may be pinned before it has a record.
        """
        self._check_writable()
        self._leases.pin(keys, owner, lease_s)

    def unpin(self, keys: Sequence[bytes], owner: Owner) -> None:
        """End the owner's pins on `keys`; those of others stay."""
        self._check_writable()
        self._leases.unpin(keys, owner)

    def get_saliency(self, version: str, source_digest: str) -> bytes | None:
        """Return the saliency map of a source image, or None if there is none; raise as `get`."""
        return self._saliency.get(version, source_digest)

    def put_saliency(self, version: str, maps: Mapping[str, bytes]) -> None:
        """Store saliency maps by source digest, in place of earlier ones of that version.

        Raises:
            CacheError: If a map is larger than 16 MiB.
            CacheFullError: If the maps do not fit under `max_gib` or on the disk.
        """
        self._check_writable()
        self._saliency.put(version, maps)

    def drop_saliency(self, version: str) -> int:
        """Remove the saliency maps of a version and return how many there were."""
        self._check_writable()
        return self._saliency.drop(version)

    def adopt(self, other: "Store") -> Adopted:
        """Copy the rejections, service counts and saliency maps of another cache.

        What is here stays; of two service counts the larger is kept. Doing it again changes
        nothing. Claims and pins are not copied, since they belong to processes.

        Raises:
            CacheFullError: If the maps do not fit under `max_gib` or on the disk.
        """
        self._check_writable()
        return saliency.adopt(self._environment, other._environment, self._quota)

    def verify(self, progress: Progress | None = None, *, repair: bool = False) -> VerifyReport:
        """Read and decode everything; others may read and write meanwhile, but not if it repairs.

        Args:
            progress: Called with how many of how many records and log positions are done.
            repair: Drop what is broken and write the rest anew.
        """
        if repair:
            self._check_writable()
        report = verify.verify(self._environment, progress)
        if repair and not report.is_clean:
            report.dropped = verify.repair(self._environment, report.broken_keys)
        return report

    def compact(self) -> int:
        """Write the file anew without its free pages; return the bytes that the disk got back.

        No other process may have the cache open. If it is interrupted, the cache is as before.

        Raises:
            CacheError: If another process has it open.
            CacheFullError: If the disk has no room for the copy.
        """
        self._check_writable()
        return compaction.compact(self._environment)

    def _check_writable(self) -> None:
        if self.readonly:
            raise CacheError(f"store must not be readonly to change {self.path}")
