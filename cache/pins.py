"""Records that a process must find again: not evicted while the process and its lease live."""

import hashlib
from collections.abc import Iterable

from cache.claims import Claim, Leases, Owner
from cache.key import Scalar, canonical_bytes
from cache.tables import Tables, Transaction

_OWNER_BYTES = 16
_PERSON = b"online-aug own 1"


class Pins:
    """The pins as one transaction sees them at one moment."""

    def __init__(self, txn: Transaction, tables: Tables, now: float) -> None:
        """Look at the pins of `tables` at Unix time `now`."""
        self._txn, self._tables, self._leases = txn, tables, Leases(now)

    def write(self, keys: Iterable[bytes], claim: Claim) -> None:
        """Pin `keys` for the owner of `claim`, or renew that."""
        raw, owner = claim.to_bytes(), _owner_id(claim.owner)
        for key in keys:
            self._txn.put(key + owner, raw, db=self._tables.pins)

    def drop(self, keys: Iterable[bytes], owner: Owner) -> None:
        """End the owner's pins on `keys`."""
        name = _owner_id(owner)
        for key in keys:
            self._txn.delete(key + name, db=self._tables.pins)

    def holds(self, key: bytes) -> bool:
        """Whether a living owner has pinned `key`."""
        return any(self._leases.living(raw) is not None for _, raw in self._on(key))

    def _on(self, key: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        with self._txn.cursor(self._tables.pins) as cursor:
            is_there = cursor.set_range(key)
            while is_there and cursor.key().startswith(key):
                found.append(cursor.item())
                is_there = cursor.next()
        return found

    def sweep(self, key: bytes) -> None:
        """Clear away the pins on `key` that are dead."""
        for name, raw in self._on(key):
            if self._leases.living(raw) is None:
                self._txn.delete(name, db=self._tables.pins)

    def count(self) -> int:
        """How many live."""
        with self._txn.cursor(self._tables.pins) as cursor:
            return sum(self._leases.living(raw) is not None for raw in cursor.iternext(keys=False))


def _owner_id(owner: Owner) -> bytes:
    fields: dict[str, Scalar] = {"host": owner.host, "pid": owner.pid, "started": owner.started}
    encoded = canonical_bytes(fields)
    return hashlib.blake2b(encoded, digest_size=_OWNER_BYTES, person=_PERSON).digest()
