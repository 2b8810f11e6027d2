"""The cache as the rest of the program sees it."""

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from cache import claims, contents, log
from cache.claims import Claim, Claims, Owner
from cache.codec import codec_named
from cache.contents import Status
from cache.environment import attach, detach
from cache.errors import CacheError
from cache.key import Scalar, canonical_bytes, check_keys, digest_of, request_key
from cache.location import DATA
from cache.record import Draft, Entry, Record, Stored, parse
from cache.verify import VerifyReport, verify


class Store:
    """Generated images under the digest of their request, shared by any number of processes.

    A store holds no open file until it is used, survives `fork`, and pickles as its arguments. Its
    methods may be called from several threads. A process that has only read-only stores never waits
    for a writer.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     entry = Entry({"method": "demo"}, np.zeros((8, 8, 3), np.uint8))
        ...     store.put_many([entry]), store.get(request_key(entry.request)).image.shape
        (1, (8, 8, 3))
    """

    def __init__(
        self,
        path: Path | str,
        *,
        codec: str = "png",
        max_gib: float | None = None,
        readonly: bool = False,
    ) -> None:
        """Check the arguments; `open` or the first use looks at the directory.

        Args:
            path: Directory on a local disk, made by the first writer.
            codec: How images are written: `png` or `raw` (lossless) or `jpeg` (quality 95, 4:4:4).
                Each record names its own, so any of them is read.
            max_gib: Size of all records at which `put_many` refuses more, GiB; None is no limit.
            readonly: Never create or change anything.

        Raises:
            CacheError: If `codec` is unknown or `max_gib` is no positive number.
        """
        if max_gib is not None and not (max_gib > 0 and math.isfinite(max_gib)):
            raise CacheError(f"max_gib must be positive or None, got {max_gib}")
        self.path = Path(path).expanduser().resolve()
        self.codec, self.max_gib, self.readonly = codec, max_gib, readonly
        self._codec = codec_named(codec)
        self._environment = attach(self.path, writable=not readonly)
        weakref.finalize(self, detach, self._environment)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments: an environment must not leave its process."""
        make = partial(Store, codec=self.codec, max_gib=self.max_gib, readonly=self.readonly)
        return make, (self.path,)

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
        """The record under `key`, None if there is none.

        Raises:
            CorruptRecordError: If its bytes are not what was written.
        """
        stored = self.inspect(key)
        return None if stored is None else stored.decode()

    def get_request(self, key: bytes) -> dict[str, Scalar] | None:
        """The request of the record under `key`, its image not decoded; None if there is none."""
        stored = self.inspect(key)
        return None if stored is None else stored.request

    def inspect(self, key: bytes) -> Stored | None:
        """All about the record under `key`, its image still encoded; None if there is none.

        Raises:
            CorruptRecordError: If its bytes are not what was written.
        """
        check_keys([key])
        with self._environment.transaction() as (txn, tables):
            value = txn.get(key, db=tables.records)
        return None if value is None else parse(key, value)

    def put_many(self, entries: Sequence[Entry]) -> int:
        """Store what is not there yet and return how many that were.

        All of one call goes into one transaction: records, log, accounting, and the end of the
        claims on its keys, whoever held them. When it has returned, power may fail.

        Raises:
            CacheError: If an entry cannot be stored; then none of the call is.
            CacheFullError: If `max_gib` would be passed or the disk is full; then none is.
        """
        self._check_writable()
        offered: dict[bytes, Entry] = {}
        for entry in entries:
            offered.setdefault(request_key(entry.request), entry)
        keys, created = list(offered), time.time()
        missing = (key for key, there in zip(keys, self.contains(keys), strict=True) if not there)
        drafts = [Draft(offered[key], self._codec, created) for key in missing]
        with self._environment.transaction(write=True) as (txn, tables):
            fresh = [draft for draft in drafts if not contents.is_present(txn, tables, draft.key)]
            contents.check_room(txn, tables, sum(map(len, fresh)), self.max_gib)
            contents.append(txn, tables, fresh)
            held = Claims(txn, tables, created)
            for key in keys:
                held.drop(key)
        return len(fresh)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each of `keys` has a record, all seen at one moment."""
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            return [contents.is_present(txn, tables, key) for key in keys]

    def status(self, keys: Sequence[bytes]) -> list[Status]:
        """What became of each of `keys`, all seen at one moment; a dead claim counts as free."""
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            held = Claims(txn, tables, time.time())
            return [contents.status_of(txn, tables, held, key) for key in keys]

    def tail(self, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]:
        """Positions above `after` with their keys, in the order of arrival, at most `limit`."""
        return log.read_in_parts(self._environment, after, math.inf if limit is None else limit)

    def position(self) -> int:
        """The last position of the log, 0 when it is empty."""
        with self._environment.transaction() as (txn, tables):
            return log.last_position(txn, tables)

    def sample(self, rng: np.random.Generator, n: int) -> list[bytes]:
        """`n` keys drawn uniformly from the log, with replacement; none from an empty cache."""
        with self._environment.transaction() as (txn, tables):
            return log.sample_keys(txn, tables, rng, n)

    def claim(self, keys: Sequence[bytes], owner: Owner, lease_s: float = 300) -> list[bytes]:
        """Those of `keys` that are now `owner`'s to make, in order.

        Left out are keys that are present, rejected or claimed by another living owner; a claim
        ends with its lease, or at once when its process is gone. One's own claim is renewed.

        Raises:
            CacheError: If `lease_s` is not positive.
        """
        self._check_writable()
        check_keys(keys)
        if not lease_s > 0:
            raise CacheError(f"lease_s must be positive, got {lease_s}")
        now = time.time()
        claim = Claim(owner, now + lease_s)
        with self._environment.transaction(write=True) as (txn, tables):
            return contents.claim_free(txn, tables, keys, claim, now)

    def release(self, keys: Sequence[bytes], owner: Owner) -> None:
        """End `owner`'s claims on `keys`; those of others stay."""
        self._check_writable()
        check_keys(keys)
        with self._environment.transaction(write=True) as (txn, tables):
            held = Claims(txn, tables, time.time())
            for key in keys:
                held.drop(key, owner)

    def reject(self, key: bytes, request: Mapping[str, Scalar], reason: str) -> None:
        """Note that `request` is not to be made again, and end the claim on it.

        A key that has a record keeps it and is not noted.

        Raises:
            CacheError: If `key` is not the key of `request`.
        """
        self._check_writable()
        encoded = canonical_bytes(request)
        if digest_of(encoded) != key:
            raise CacheError(f"key must be the request's own, got {key.hex()}")
        with self._environment.transaction(write=True) as (txn, tables):
            if not contents.is_present(txn, tables, key):
                claims.reject(txn, tables, key, encoded, reason)
            Claims(txn, tables, time.time()).drop(key)

    def is_rejected(self, key: bytes) -> bool:
        """Whether `key` was rejected and has no record."""
        return self.status([key]) == ["rejected"]

    def stats(self) -> dict[str, Any]:
        """Counts and sizes, all seen at one moment; takes as long however large the cache is."""
        with self._environment.transaction() as (txn, tables):
            found = contents.statistics(txn, tables, time.time())
        file_bytes = (self.path / DATA).stat().st_size
        return {
            "path": str(self.path),
            "max_gib": self.max_gib,
            "file_bytes": file_bytes,
            **found,
        }

    def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read and decode everything; others may read and write meanwhile.

        Args:
            progress: Called with how many of how many records and log positions are done.
        """
        return verify(self._environment, progress)

    def _check_writable(self) -> None:
        if self.readonly:
            raise CacheError(f"store must not be readonly to change {self.path}")
