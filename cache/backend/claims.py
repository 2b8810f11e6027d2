"""Claims, pins and rejections: what processes note about keys beside the records.

A claim is the right to make a key, a pin keeps a record from eviction. Both belong to an owner and
end with their lease, or at once when the owner's process is gone.
"""

import hashlib
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, Self, TypeAlias

from cache.backend.environment import Environment
from cache.backend.tables import (
    Tables,
    Transaction,
    add_number,
    clear_numbers,
    get_number,
    has_record,
)
from cache.errors import CacheError, CorruptRecordError
from cache.keys import Scalar, canonical_bytes, check_keys, decode_fields, digest_of
from cache.rejection import Rejection

Status: TypeAlias = Literal["present", "rejected", "claimed", "free"]

PICTURES_OF_A_REASON = 16
"""Rejections of each reason that keep a picture: enough to look at, whatever the cache's size."""

_PROC = Path("/proc")
_OWNER_BYTES = 16
_OWNER_PERSON = b"online-aug own 1"


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one with the same number."""

    host: str
    """Machine, its boot and its namespace of process numbers."""
    pid: int
    started: int
    """Start of the process in clock ticks after boot, 0 if the system does not tell."""

    @classmethod
    def current(cls) -> Self:
        """Return the calling process."""
        pid = os.getpid()
        return cls(host=_host(), pid=pid, started=_started(pid) or 0)

    def is_gone(self) -> bool:
        """Return whether the process has certainly ended. Unknown for other hosts: False."""
        if self.host != _host() or not self.started:
            return False
        return _started(self.pid) != self.started


def _host() -> str:
    name = socket.gethostname()
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{name}/{boot}/{(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return name


def _started(pid: int) -> int | None:
    try:
        raw = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything; behind it stand state (field 3) and start (22).
    state, *rest = raw[raw.rindex(b")") + 1 :].split()
    return None if state in (b"Z", b"X") else int(rest[18])


@dataclass(frozen=True)
class Claim:
    """The lease of `owner` on one key until `expires`, Unix time in s; pins are stored alike."""

    owner: Owner
    expires: float

    def to_bytes(self) -> bytes:
        """Encode the claim."""
        return canonical_bytes({**_owner_fields(self.owner), "expires": self.expires})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode a claim.

        Raises:
            CorruptRecordError: If `data` does not name owner and end of a lease.
        """
        match decode_fields(data):
            case {"host": str(host), "pid": int(pid), "started": int(started), "expires": float(t)}:
                return cls(Owner(host, pid, started), t)
        raise CorruptRecordError("claim must name host, pid, started and expires")


def _owner_fields(owner: Owner) -> dict[str, Scalar]:
    return {"host": owner.host, "pid": owner.pid, "started": owner.started}


class Liveness:
    """Tells living claims from dead ones at one moment; looks at each owner once."""

    def __init__(self, now: float) -> None:
        """Judge leases at Unix time `now`."""
        self._now = now
        self._is_gone = cache(Owner.is_gone)

    def living(self, raw: bytes | None) -> Claim | None:
        """Return the encoded claim, or None if its lease ran out or its owner is gone."""
        if raw is None:
            return None
        claim = Claim.from_bytes(raw)
        is_dead = claim.expires <= self._now or self._is_gone(claim.owner)
        return None if is_dead else claim


class Claims:
    """The claims in one transaction at one moment."""

    def __init__(self, txn: Transaction, tables: Tables, now: float) -> None:
        """Judge the claims at Unix time `now`."""
        self._txn, self._tables, self._liveness = txn, tables, Liveness(now)

    def living(self, key: bytes) -> Claim | None:
        """Return the living claim on `key`, if there is one."""
        return self._liveness.living(self._txn.get(key, db=self._tables.claims))

    def take_free(self, keys: Iterable[bytes], claim: Claim) -> list[bytes]:
        """Put `claim` on the keys that nobody else has made, rejected or claimed; return these."""
        claimed = []
        for key in dict.fromkeys(keys):
            if has_record(self._txn, self._tables, key):
                continue
            if is_rejected(self._txn, self._tables, key):
                continue
            living = self.living(key)
            if living is None or living.owner == claim.owner:
                self._txn.put(key, claim.to_bytes(), db=self._tables.claims)
                claimed.append(key)
        return claimed

    def drop(self, key: bytes, owner: Owner | None = None) -> None:
        """Remove the claim on `key`; if `owner` is given, only a claim of theirs."""
        raw = self._txn.get(key, db=self._tables.claims)
        if raw is not None and (owner is None or Claim.from_bytes(raw).owner == owner):
            self._txn.delete(key, db=self._tables.claims)

    def status(self, key: bytes) -> Status:
        """Return whether `key` has a record, is rejected, is claimed or is free to be made."""
        if has_record(self._txn, self._tables, key):
            return "present"
        if is_rejected(self._txn, self._tables, key):
            return "rejected"
        return "free" if self.living(key) is None else "claimed"

    def holders(self) -> Counter[Owner | None]:
        """Count the claims of each living owner, and under None those that are dead."""
        with self._txn.cursor(self._tables.claims) as cursor:
            claims = [self._liveness.living(raw) for raw in cursor.iternext(keys=False)]
        return Counter(None if claim is None else claim.owner for claim in claims)


class Pins:
    """The pins in one transaction at one moment."""

    def __init__(self, txn: Transaction, tables: Tables, now: float) -> None:
        """Judge the pins at Unix time `now`."""
        self._txn, self._tables, self._liveness = txn, tables, Liveness(now)

    def write(self, keys: Iterable[bytes], claim: Claim) -> None:
        """Pin `keys` for the owner of `claim`, or renew the owner's pins."""
        raw, owner = claim.to_bytes(), _owner_id(claim.owner)
        for key in keys:
            self._txn.put(key + owner, raw, db=self._tables.pins)

    def drop(self, keys: Iterable[bytes], owner: Owner) -> None:
        """Remove the owner's pins on `keys`."""
        name = _owner_id(owner)
        for key in keys:
            self._txn.delete(key + name, db=self._tables.pins)

    def holds(self, key: bytes) -> bool:
        """Return whether a living owner has pinned `key`."""
        return any(self._liveness.living(raw) is not None for _, raw in self._on(key))

    def sweep(self, key: bytes) -> None:
        """Remove the dead pins on `key`."""
        for name, raw in self._on(key):
            if self._liveness.living(raw) is None:
                self._txn.delete(name, db=self._tables.pins)

    def count(self) -> int:
        """Return the number of living pins."""
        with self._txn.cursor(self._tables.pins) as cursor:
            raws = cursor.iternext(keys=False)
            return sum(self._liveness.living(raw) is not None for raw in raws)

    def _on(self, key: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        with self._txn.cursor(self._tables.pins) as cursor:
            is_there = cursor.set_range(key)
            while is_there and cursor.key().startswith(key):
                found.append(cursor.item())
                is_there = cursor.next()
        return found


def _owner_id(owner: Owner) -> bytes:
    encoded = canonical_bytes(_owner_fields(owner))
    return hashlib.blake2b(encoded, digest_size=_OWNER_BYTES, person=_OWNER_PERSON).digest()


def reject(
    txn: Transaction, tables: Tables, key: bytes, request: bytes, rejection: Rejection
) -> None:
    """Note that `key` must not be made again; a later reason replaces an earlier one."""
    restore(txn, tables, key)
    if get_number(txn, tables, f"rejected/{rejection.reason}") >= PICTURES_OF_A_REASON:
        rejection = replace(rejection, picture=None)
    reject_as(txn, tables, key, rejection.to_bytes(request))


def reject_as(txn: Transaction, tables: Tables, key: bytes, raw: bytes) -> None:
    """Write an encoded rejection of a key that has none.

    Raises:
        CorruptRecordError: If `raw` gives no reason.
    """
    add_number(txn, tables, f"rejected/{_reason(raw)}", 1)
    txn.put(key, raw, db=tables.rejected)


def restore(txn: Transaction, tables: Tables, key: bytes) -> None:
    """Remove the rejection of `key`, if there is one."""
    raw = txn.pop(key, db=tables.rejected)
    if raw is not None:
        add_number(txn, tables, f"rejected/{_reason(raw)}", -1)


def is_rejected(txn: Transaction, tables: Tables, key: bytes) -> bool:
    """Return whether `key` was rejected."""
    return txn.get(key, db=tables.rejected) is not None


def drop_unreadable(txn: Transaction, tables: Tables) -> None:
    """Remove claims, pins and rejections that cannot be read, and count the rejections anew."""
    for _, key in unreadable(txn, tables):
        for table in (tables.claims, tables.pins, tables.rejected):
            txn.delete(key, db=table)
    clear_numbers(txn, tables, "rejected/")
    with txn.cursor(tables.rejected) as cursor:
        reasons = Counter(_reason(raw) for raw in cursor.iternext(keys=False))
    for reason, count in reasons.items():
        add_number(txn, tables, f"rejected/{reason}", count)


def unreadable(txn: Transaction, tables: Tables) -> list[tuple[str, bytes]]:
    """Return claims, pins and rejections that cannot be read, as error and key."""
    found = []
    checks = ((tables.claims, Claim.from_bytes), (tables.pins, Claim.from_bytes))
    for table, check in (*checks, (tables.rejected, _reason)):
        with txn.cursor(table) as cursor:
            for key, raw in cursor:
                try:
                    check(raw)
                except CorruptRecordError as error:
                    found.append((str(error), key))
    return found


def _reason(raw: bytes) -> str:
    return Rejection.from_bytes(raw).reason


class Leases:
    """The part of a store that claims, pins and rejects keys; `Store` documents the methods."""

    def __init__(self, environment: Environment) -> None:
        """Work on the cache of `environment`."""
        self._environment = environment

    def claim(self, keys: Sequence[bytes], owner: Owner, lease_s: float) -> list[bytes]:
        """Claim the free ones of `keys` and return them."""
        claim = _new_claim(keys, owner, lease_s)
        with self._environment.transaction(write=True) as (txn, tables):
            return Claims(txn, tables, time.time()).take_free(keys, claim)

    def release(self, keys: Sequence[bytes], owner: Owner) -> None:
        """End the owner's claims on `keys`."""
        check_keys(keys)
        with self._environment.transaction(write=True) as (txn, tables):
            held = Claims(txn, tables, time.time())
            for key in keys:
                held.drop(key, owner)

    def rejections(self, keys: Sequence[bytes] | None) -> dict[bytes, Rejection]:
        """Return the rejections among `keys`, or all."""
        if keys is None:
            with (
                self._environment.transaction() as (txn, tables),
                txn.cursor(tables.rejected) as cursor,
            ):
                return {key: Rejection.from_bytes(raw) for key, raw in cursor}
        check_keys(keys)
        with self._environment.transaction() as (txn, tables):
            found = {key: txn.get(key, db=tables.rejected) for key in keys}
        return {key: Rejection.from_bytes(raw) for key, raw in found.items() if raw is not None}

    def reject(self, key: bytes, request: Mapping[str, Scalar], rejection: Rejection) -> None:
        """Note that `request` must not be made again, and end the claim on it."""
        encoded = canonical_bytes(request)
        if digest_of(encoded) != key:
            raise CacheError(f"key must be the request's own, got {key.hex()}")
        with self._environment.transaction(write=True) as (txn, tables):
            if not has_record(txn, tables, key):
                reject(txn, tables, key, encoded, rejection)
            Claims(txn, tables, time.time()).drop(key)

    def pin(self, keys: Sequence[bytes], owner: Owner, lease_s: float) -> None:
        """Keep the records under `keys` from eviction."""
        claim = _new_claim(keys, owner, lease_s)
        with self._environment.transaction(write=True) as (txn, tables):
            Pins(txn, tables, time.time()).write(keys, claim)

    def unpin(self, keys: Sequence[bytes], owner: Owner) -> None:
        """End the owner's pins on `keys`."""
        check_keys(keys)
        with self._environment.transaction(write=True) as (txn, tables):
            Pins(txn, tables, time.time()).drop(keys, owner)


def _new_claim(keys: Sequence[bytes], owner: Owner, lease_s: float) -> Claim:
    check_keys(keys)
    if not lease_s > 0:
        raise CacheError(f"lease_s must be positive, got {lease_s}")
    return Claim(owner, time.time() + lease_s)
