"""What a process says of keys beside their records: who makes them, keeps them, gave them up."""

import time
from collections.abc import Mapping, Sequence

from cache import claims, contents
from cache.claims import Claim, Claims, Owner
from cache.errors import CacheError
from cache.key import Scalar, canonical_bytes, check_keys, digest_of
from cache.pins import Pins
from cache.reading import Reader


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
            return contents.claim_free(txn, tables, keys, claim, time.time())

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
