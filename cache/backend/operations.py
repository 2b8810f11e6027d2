"""What a cache holds, as one transaction sees or changes it across its tables."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from typing import Any, Literal, TypeAlias

from cache import record
from cache.backend import claims
from cache.backend.claims import Claim, Claims, Owner, Pins
from cache.backend.index import Index, Row, arrivals_since, last_position, last_row, row_at
from cache.backend.schema import SCHEMA_VERSION
from cache.backend.tables import (
    COUNTERS,
    Tables,
    Tally,
    Transaction,
    get_number,
    numbers,
    put_number,
)
from cache.errors import CorruptRecordError
from cache.keys import Facts, Scalar, facts_of
from cache.record import Draft, glimpse

Status: TypeAlias = Literal["present", "rejected", "claimed", "free"]

_HOUR_S = 3600.0


def append(txn: Transaction, tables: Tables, drafts: Sequence[Draft], now: float) -> None:
    """Write records, their rows in the log, the indexes and the accounting.

    None of their keys is there yet. They arrive at Unix time `now`, or with the record before
    them where that is later: the log's own time never goes back.
    """
    newest = last_row(txn, tables)
    arrived = max(now, newest.arrived) if newest else now
    index, tally = Index(txn, tables), Tally()
    first = last_position(txn, tables) + 1
    for position, draft in enumerate(drafts, first):
        facts = draft.facts
        txn.put(draft.key, draft.seal(position), db=tables.records)
        row = Row(draft.key, facts.recipe_id, facts.source_id, arrived, draft.size, 0, 0, 0)
        index.add(position, row)
        tally.add(facts, draft.size)
        claims.restore(txn, tables, draft.key)
    put_number(txn, tables, "position", first + len(drafts) - 1)
    tally.write(txn, tables)


def remove(txn: Transaction, tables: Tables, positions: Sequence[int], now: float) -> None:
    """Take out the records at these positions with all that leads to them, and their dead pins."""
    index, tally, pins = Index(txn, tables), Tally(), Pins(txn, tables, now)
    for position in positions:
        row = index.remove(position)
        tally.remove(row.recipe_id, row.size, _facts(row.key, txn.pop(row.key, db=tables.records)))
        pins.sweep(row.key)
    tally.write(txn, tables)


def position_of(txn: Transaction, tables: Tables, key: bytes) -> int | None:
    """Where the record under `key` is in the log, None if there is none.

    Raises:
        CorruptRecordError: If record and log do not agree.
    """
    value = txn.get(key, db=tables.records)
    if value is None:
        return None
    position = record.position_of(value)
    row = None if position is None else row_at(txn, tables, position)
    if row is None or row.key != key:
        raise CorruptRecordError(f"record {key.hex()} is corrupt: it is not where it says")
    return position


def requests_at(
    txn: Transaction, tables: Tables, positions: Iterable[int]
) -> list[tuple[bytes, dict[str, Scalar]]]:
    """Keys and requests of the records at these positions, but for those that cannot be read."""
    found = []
    for position in positions:
        with suppress(CorruptRecordError):
            row = row_at(txn, tables, position)
            value = None if row is None else txn.get(row.key, db=tables.records)
            if row is not None and value is not None:
                found.append((row.key, glimpse(row.key, value).request))
    return found


def are_present(txn: Transaction, tables: Tables, keys: Iterable[bytes]) -> list[bool]:
    """Whether there is a record under each of `keys`; its bytes are not read."""
    with txn.cursor(tables.records) as cursor:
        return [cursor.set_key(key) for key in keys]


def is_present(txn: Transaction, tables: Tables, key: bytes) -> bool:
    """Whether there is a record under `key`; its bytes are not read."""
    return are_present(txn, tables, [key])[0]


def keys_from(
    txn: Transaction, tables: Tables, first: bytes, prefix: str, limit: int
) -> list[bytes]:
    """At most `limit` keys from `first` on while their hexadecimal form starts with `prefix`."""
    with txn.cursor(tables.records) as cursor:
        if not cursor.set_range(first):
            return []
        following = takewhile(
            lambda key: key.hex().startswith(prefix), cursor.iternext(values=False)
        )
        return list(islice(following, limit))


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


def statistics(txn: Transaction, tables: Tables, now: float) -> dict[str, Any]:
    """Counts and sizes; takes as long however many records there are."""
    holders = Claims(txn, tables, now).holders()
    dead = holders.pop(None, 0)
    return {
        "schema": SCHEMA_VERSION,
        "entries": txn.stat(tables.records)["entries"],
        "position": last_position(txn, tables),
        "payload_bytes": get_number(txn, tables, "payload_bytes"),
        "stored_bytes": get_number(txn, tables, "stored_bytes"),
        "recipes": txn.stat(tables.recipes)["entries"],
        **{f"by_{prefix[:-1]}": numbers(txn, tables, prefix) for prefix in COUNTERS},
        "made_last_hour": arrivals_since(txn, tables, now - _HOUR_S),
        "evicted": get_number(txn, tables, "evicted"),
        "corrupt": get_number(txn, tables, "corrupt"),
        "rejected": txn.stat(tables.rejected)["entries"],
        "rejected_by_reason": numbers(txn, tables, "rejected/"),
        "claims_live": holders.total(),
        "claims_dead": dead,
        "owners": [_owner_fields(owner, count) for owner, count in holders.items() if owner],
        "pins_live": Pins(txn, tables, now).count(),
        "saliency_maps": txn.stat(tables.saliency)["entries"],
        "saliency_bytes": get_number(txn, tables, "saliency_bytes"),
    }


def _owner_fields(owner: Owner, claims: int) -> dict[str, Any]:
    return {"host": owner.host.partition("/")[0], "pid": owner.pid, "claims": claims}


def _facts(key: bytes, value: bytes | None) -> Facts | None:
    try:
        return None if value is None else facts_of(glimpse(key, value).request)
    except CorruptRecordError:
        return None
