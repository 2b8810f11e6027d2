"""What a cache holds, as one transaction sees or changes it across its tables."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from cache import claims, log
from cache.claims import Claim, Claims
from cache.errors import CacheFullError
from cache.record import SCHEMA_VERSION, Draft
from cache.tables import Tables, Transaction, add_number, get_number, numbers

Status: TypeAlias = Literal["present", "rejected", "claimed", "free"]

_GIB = 2**30


def append(txn: Transaction, tables: Tables, drafts: Sequence[Draft]) -> None:
    """Write records, their places in the log and the accounting; none of the keys is there yet."""
    start = log.last_position(txn, tables) + 1
    for position, draft in enumerate(drafts, start):
        txn.put(draft.key, draft.seal(position), db=tables.records)
        log.append(txn, tables, position, draft.key)
        claims.restore(txn, tables, draft.key)
        add_number(txn, tables, f"method/{draft.method}", 1)
    add_number(txn, tables, "payload_bytes", sum(map(len, drafts)))


def is_present(txn: Transaction, tables: Tables, key: bytes) -> bool:
    """Whether there is a record under `key`; its bytes are not read."""
    with txn.cursor(tables.records) as cursor:
        return cursor.set_key(key)


def status_of(txn: Transaction, tables: Tables, held: Claims, key: bytes) -> Status:
    """What became of `key`; a dead claim counts as free."""
    if is_present(txn, tables, key):
        return "present"
    if claims.is_rejected(txn, tables, key):
        return "rejected"
    return "free" if held.living(key) is None else "claimed"


def claim_free(
    txn: Transaction, tables: Tables, keys: Iterable[bytes], claim: Claim, now: float
) -> list[bytes]:
    """Put `claim` on those of `keys` that nobody has made, rejected or is about to make."""
    held = Claims(txn, tables, now)
    claimed = []
    for key in dict.fromkeys(keys):
        if is_present(txn, tables, key) or claims.is_rejected(txn, tables, key):
            continue
        living = held.living(key)
        if living is None or living.owner == claim.owner:
            held.write(key, claim)
            claimed.append(key)
    return claimed


def check_room(txn: Transaction, tables: Tables, size: int, max_gib: float | None) -> None:
    """Refuse `size` more bytes of records where they would pass `max_gib`.

    Raises:
        CacheFullError: If they would.
    """
    used = get_number(txn, tables, "payload_bytes")
    if size and max_gib is not None and used + size > max_gib * _GIB:
        raise CacheFullError(
            f"cache.max_gib must leave room: {used} bytes of {max_gib} GiB are used and {size} "
            "more came; raise it or use another cache"
        )


def statistics(txn: Transaction, tables: Tables, now: float) -> dict[str, Any]:
    """Counts and sizes; takes as long however many records there are."""
    live, dead = Claims(txn, tables, now).count()
    return {
        "schema": SCHEMA_VERSION,
        "entries": txn.stat(tables.records)["entries"],
        "position": log.last_position(txn, tables),
        "payload_bytes": get_number(txn, tables, "payload_bytes"),
        "by_method": numbers(txn, tables, "method/"),
        "rejected": txn.stat(tables.rejected)["entries"],
        "rejected_by_reason": numbers(txn, tables, "rejected/"),
        "claims_live": live,
        "claims_dead": dead,
    }
