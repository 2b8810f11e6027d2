"""Who is making what: claims with an owner and a lease, and requests that were given up.

Records that a process must find again: not evicted while the process and its lease live.
"""

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from cache.backend.tables import Tables, Transaction, add_number, clear_numbers
from cache.errors import CorruptRecordError
from cache.keys import Scalar, canonical_bytes, decode_fields

_PROC = Path("/proc")
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one that was given the same number."""

    host: str
    """Machine, its boot and the namespace that numbers its processes."""
    pid: int
    started: int
    """Start of the process, clock ticks after boot; 0 where the system does not tell."""

    @classmethod
    def current(cls) -> Self:
        """The calling process."""
        pid = os.getpid()
        return cls(host=_host(), pid=pid, started=_started(pid) or 0)

    def is_gone(self) -> bool:
        """Whether it is certain that the process has ended; unknown for other hosts."""
        if self.host != _host() or not self.started:
            return False
        return _started(self.pid) != self.started


@dataclass(frozen=True)
class Claim:
    """The right of `owner` to make one key until `expires`, Unix time in s."""

    owner: Owner
    expires: float

    def to_bytes(self) -> bytes:
        """Its encoding in the cache."""
        owner = self.owner
        return canonical_bytes(
            {
                "host": owner.host,
                "pid": owner.pid,
                "started": owner.started,
                "expires": self.expires,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The claim that was encoded.

        Raises:
            CorruptRecordError: If it is none.
        """
        match decode_fields(data):
            case {"host": str(host), "pid": int(pid), "started": int(started), "expires": float(t)}:
                return cls(Owner(host, pid, started), t)
        raise CorruptRecordError("claim must name host, pid, started and expires")


class Leases:
    """Tells living claims from dead ones at one moment, with one look at each owner."""

    def __init__(self, now: float) -> None:
        """Judge leases by Unix time `now`."""
        self._now = now
        self._is_gone = cache(Owner.is_gone)

    def living(self, raw: bytes | None) -> Claim | None:
        """The encoded claim unless its lease ran out or its owner is gone."""
        if raw is None:
            return None
        claim = Claim.from_bytes(raw)
        is_dead = claim.expires <= self._now or self._is_gone(claim.owner)
        return None if is_dead else claim


class Claims:
    """The claims as one transaction sees them at one moment."""

    def __init__(self, txn: Transaction, tables: Tables, now: float) -> None:
        """Look at the claims of `tables` at Unix time `now`."""
        self._txn, self._tables, self._leases = txn, tables, Leases(now)

    def living(self, key: bytes) -> Claim | None:
        """The claim on `key` unless its lease ran out or its owner is gone."""
        return self._leases.living(self._txn.get(key, db=self._tables.claims))

    def write(self, key: bytes, claim: Claim) -> None:
        """Put `claim` on `key`, in place of any other."""
        self._txn.put(key, claim.to_bytes(), db=self._tables.claims)

    def drop(self, key: bytes, owner: Owner | None = None) -> None:
        """Take the claim off `key`; with `owner`, only one of theirs."""
        raw = self._txn.get(key, db=self._tables.claims)
        if raw is not None and (owner is None or Claim.from_bytes(raw).owner == owner):
            self._txn.delete(key, db=self._tables.claims)

    def holders(self) -> Counter[Owner | None]:
        """How many claims each living owner holds; under None those that are dead."""
        with self._txn.cursor(self._tables.claims) as cursor:
            claims = [self._leases.living(raw) for raw in cursor.iternext(keys=False)]
        return Counter(None if claim is None else claim.owner for claim in claims)


def reject(txn: Transaction, tables: Tables, key: bytes, request: bytes, reason: str) -> None:
    """Note that `key` is not to be made again; the last reason counts."""
    restore(txn, tables, key)
    encoded = canonical_bytes({"reason": reason})
    reject_as(txn, tables, key, len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded + request)


def reject_as(txn: Transaction, tables: Tables, key: bytes, raw: bytes) -> None:
    """Write an encoded rejection of `key`, which has none.

    Raises:
        CorruptRecordError: If `raw` is none.
    """
    add_number(txn, tables, f"rejected/{_reason(raw)}", 1)
    txn.put(key, raw, db=tables.rejected)


def restore(txn: Transaction, tables: Tables, key: bytes) -> None:
    """Take back the rejection of `key`, if there is one."""
    raw = txn.pop(key, db=tables.rejected)
    if raw is not None:
        add_number(txn, tables, f"rejected/{_reason(raw)}", -1)


def is_rejected(txn: Transaction, tables: Tables, key: bytes) -> bool:
    """Whether `key` was rejected."""
    return txn.get(key, db=tables.rejected) is not None


def recount(txn: Transaction, tables: Tables) -> None:
    """Count the rejections anew, and take out claims, pins and rejections that are unreadable."""
    for _, key in unreadable(txn, tables):
        for table in (tables.claims, tables.pins, tables.rejected):
            txn.delete(key, db=table)
    clear_numbers(txn, tables, "rejected/")
    with txn.cursor(tables.rejected) as cursor:
        reasons = Counter(_reason(raw) for raw in cursor.iternext(keys=False))
    for reason, count in reasons.items():
        add_number(txn, tables, f"rejected/{reason}", count)


def unreadable(txn: Transaction, tables: Tables) -> list[tuple[str, bytes]]:
    """Claims, pins and rejections that cannot be read: what is wrong, and under which key."""
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
    length = int.from_bytes(raw[:_LENGTH_BYTES], "big")
    match decode_fields(raw[_LENGTH_BYTES : _LENGTH_BYTES + length]):
        case {"reason": str(reason)}:
            return reason
    raise CorruptRecordError("rejection must give a reason")


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
