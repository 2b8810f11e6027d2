"""The cache as the rest of the program sees it.

What a process says of keys beside their records: who makes them, keeps them, gave them up.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from cache.backend import claims, operations, saliency
from cache.backend.claims import Claim, Claims, Owner, Pins
from cache.backend.directory import check_free
from cache.backend.eviction import Policy, Quota, evict_some
from cache.backend.index import Index
from cache.backend.maintenance import Progress, VerifyReport, compact, drop_if_broken, mend, verify
from cache.backend.saliency import Adopted, adopt
from cache.backend.tables import pages_bytes, stored_size
from cache.errors import CacheError
from cache.keys import Scalar, canonical_bytes, check_keys, digest_of
from cache.reader import Reader
from cache.record import Draft, Entry, Record


class Leasing(Reader):
    """Claims, pins and rejections; `Store` adds what changes the records."""

    def claim(self, keys: Sequence[bytes], owner: Owner, lease_s: float = 300) -> list[bytes]:
        """Those of `keys` that are now `owner`'s to make, in order.

        Left out are keys that are present, rejected or claimed by another living owner; a claim
        ends with its lease, or at once when its process is gone. One's own claim is renewed.

        Raises:
            CacheError: If `lease_s` is not positive.
        """
        claim = self._lease(keys, owner, lease_s)
        with self._environment.transaction(write=True) as (txn, tables):
            return operations.claim_free(txn, tables, keys, claim, time.time())

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
            if not operations.is_present(txn, tables, key):
                claims.reject(txn, tables, key, encoded, reason)
            Claims(txn, tables, time.time()).drop(key)

    def pin(self, keys: Sequence[bytes], owner: Owner, lease_s: float = 300) -> None:
        """Keep the records under `keys` from eviction while `owner` and the lease live.

        Pinning again renews the lease. A key may be pinned before it has a record.

        Raises:
            CacheError: If `lease_s` is not positive.
        """
        claim = self._lease(keys, owner, lease_s)
        with self._environment.transaction(write=True) as (txn, tables):
            Pins(txn, tables, time.time()).write(keys, claim)

    def unpin(self, keys: Sequence[bytes], owner: Owner) -> None:
        """End `owner`'s pins on `keys`; those of others stay."""
        self._check_writable()
        check_keys(keys)
        with self._environment.transaction(write=True) as (txn, tables):
            Pins(txn, tables, time.time()).drop(keys, owner)

    def _lease(self, keys: Sequence[bytes], owner: Owner, lease_s: float) -> Claim:
        self._check_writable()
        check_keys(keys)
        if not lease_s > 0:
            raise CacheError(f"lease_s must be positive, got {lease_s}")
        return Claim(owner, time.time() + lease_s)


_GIB = 2**30
_EVICTED_AT_ONCE = 256
"""Records in one transaction of `evict`, so that other writers need not wait for long."""


class Store(Leasing):
    """Generated images under the digest of their request, shared by any number of processes.

    A store holds no open file until it is used, survives `fork`, and pickles as its arguments. Its
    methods may be called from several threads. A process that has only read-only stores never waits
    for a writer.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from cache import request_key
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     entry = Entry({"method": "demo"}, np.zeros((8, 8, 3), np.uint8))
        ...     store.put_many([entry]), store.get(request_key(entry.request)).image.shape
        (1, (8, 8, 3))
    """

    def put_many(self, entries: Sequence[Entry]) -> int:
        """Store what is not there yet and return how many that were.

        All of one call goes into one transaction: records, log, indexes, accounting, what is
        evicted for them, and the end of the claims on their keys, whoever held them. When it has
        returned, power may fail (with the default `durability`).

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
        return self._put(keys, drafts)

    def put_records(self, records: Sequence[Record]) -> int:
        """As `put_many`, with records of another cache: encoded once and never again.

        Raises:
            CacheError: As `put_many`.
            CacheFullError: As `put_many`.
        """
        self._check_writable()
        offered: dict[bytes, Record] = {}
        for stored in records:
            offered.setdefault(stored.key, stored)
        return self._put(list(offered), [Draft.copy(stored) for stored in offered.values()])

    def _put(self, keys: list[bytes], drafts: list[Draft]) -> int:
        now = time.time()
        with self._environment.transaction(write=True) as (txn, tables):
            present = operations.are_present(txn, tables, [draft.key for draft in drafts])
            fresh = [draft for draft, is_there in zip(drafts, present, strict=True) if not is_there]
            needed = sum(stored_size(draft.size) for draft in fresh)
            check_free(self.path, needed, lambda: pages_bytes(txn, tables))
            if self.max_gib is not None:
                quota = Quota(self.max_gib * _GIB, self.policy)
                sizes = [draft.size for draft in fresh]
                quota.make_room(txn, tables, sizes, set(keys), now)
            operations.append(txn, tables, fresh, now)
            held = Claims(txn, tables, now)
            for key in keys:
                held.drop(key)
        return len(fresh)

    def evict(self, policy: Policy, *, count: int | None = None, to_gib: float = 0.0) -> int:
        """Let records go in the order of `policy` and return how many that were.

        What is pinned stays. It works in short transactions: others read and write meanwhile.

        Args:
            policy: Decides what goes first, and what not at all.
            count: At most so many; None is no limit.
            to_gib: Stop when the cache takes no more than this.
        """
        self._check_writable()
        gone, wanted, down_to = 0, math.inf if count is None else count, to_gib * _GIB
        while gone < wanted:
            most, now = int(min(_EVICTED_AT_ONCE, wanted - gone)), time.time()
            with self._environment.transaction(write=True) as (txn, tables):
                fewer = evict_some(txn, tables, policy, now, most, down_to)
            gone += fewer
            if not fewer:
                break
        return gone

    def note_served(self, keys: Sequence[bytes]) -> None:
        """Count records as served, once for each time they are named; unknown keys are left out.

        One transaction: give it many keys at once.
        """
        self._check_writable()
        check_keys(keys)
        with self._environment.transaction(write=True) as (txn, tables):
            index = Index(txn, tables)
            for key, times in Counter(keys).items():
                position = operations.position_of(txn, tables, key)
                if position is not None:
                    index.add_served(position, times)

    def put_saliency(self, version: str, maps: Mapping[str, bytes]) -> None:
        """Keep saliency maps by source digest, in place of what that version had for them.

        Raises:
            CacheError: If one is larger than 16 MiB.
            CacheFullError: If they do not fit under `max_gib` beside the records, or on the disk.
        """
        self._check_writable()
        saliency.check_maps(maps)
        with self._environment.transaction(write=True) as (txn, tables):
            saliency.put(txn, tables, version, maps)
            if self.max_gib is not None:
                Quota(self.max_gib * _GIB, None).check(txn, tables)

    def drop_saliency(self, version: str) -> int:
        """Take out the maps of a version and return how many that were."""
        self._check_writable()
        with self._environment.transaction(write=True) as (txn, tables):
            return saliency.drop(txn, tables, version)

    def adopt(self, other: Reader) -> Adopted:
        """Take over what `other` has beside its records; may be cut short and done again.

        Rejections of keys that have neither a record nor a rejection here, the larger of two counts
        of how often a record was served, and saliency maps that are not here. Claims and pins stay
        where they are: they belong to processes.

        Raises:
            CacheFullError: If the maps do not fit under `max_gib` beside the records, or on the
                disk.
        """
        self._check_writable()
        max_bytes = None if self.max_gib is None else self.max_gib * _GIB
        return adopt(self._environment, other._environment, max_bytes)

    def drop_corrupt(self, key: bytes) -> bool:
        """Take out the record under `key` if it cannot be read, so that it can be made again.

        Counted in `stats` as `corrupt`. A record that can be read stays, and the answer is False.
        """
        self._check_writable()
        check_keys([key])
        with self._environment.transaction(write=True) as (txn, tables):
            return drop_if_broken(txn, tables, key, time.time())

    def verify(self, progress: Progress | None = None, *, repair: bool = False) -> VerifyReport:
        """Read and decode everything; others may read and write meanwhile.

        Args:
            progress: Called with how many of how many records and log positions are done.
            repair: Then drop what is broken, if anything is, and write log, indexes and accounting
                anew from the records that are left; others cannot write meanwhile.
        """
        if repair:
            self._check_writable()
        report = verify(self._environment, progress)
        if repair and not report.is_clean:
            report.dropped = mend(self._environment, report.broken_keys)
        return report

    def compact(self) -> int:
        """Write the file anew without its free pages and return how many bytes the disk got back.

        Nobody else may have the cache open, and whoever opens it meanwhile is refused. If it is
        interrupted, the cache is as before.

        Raises:
            CacheError: If another process has it open.
            CacheFullError: If the disk has no room for the copy.
        """
        self._check_writable()
        return compact(self._environment)
