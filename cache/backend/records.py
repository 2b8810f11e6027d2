"""Adding and removing records, with all that follows from them: log, indexes and counts."""

from collections import Counter
from collections.abc import Iterable, Sequence

from cache.backend import claims
from cache.backend.claims import Pins
from cache.backend.index import Index, Row, last_position, last_row, row_at, walk_log
from cache.backend.tables import Tables, Tally, Transaction, add_number, put_number
from cache.errors import CorruptRecordError
from cache.keys import IndexTerms, index_terms
from cache.record import Draft, parse, position_in, read_summary


def append(txn: Transaction, tables: Tables, drafts: Sequence[Draft], now: float) -> None:
    """Write records whose keys are not there yet, their log rows, indexes and counts.

    They arrive at Unix time `now`, or with the record before them if that arrived later: the time
    in the log never goes back.
    """
    newest = last_row(txn, tables)
    arrived = max(now, newest.arrived) if newest else now
    index, tally = Index(txn, tables), Tally()
    first = last_position(txn, tables) + 1
    for position, draft in enumerate(drafts, first):
        terms = draft.terms
        txn.put(draft.key, draft.seal(position), db=tables.records)
        row = Row(draft.key, terms.recipe_id, terms.source_id, arrived, draft.size, 0, 0, 0)
        index.add(position, row)
        tally.add(terms, draft.size)
        claims.restore(txn, tables, draft.key)
    put_number(txn, tables, "position", first + len(drafts) - 1)
    tally.write(txn, tables)


def remove(txn: Transaction, tables: Tables, positions: Sequence[int], now: float) -> None:
    """Remove the records at `positions`, all that follows from them, and their dead pins."""
    index, tally, pins = Index(txn, tables), Tally(), Pins(txn, tables, now)
    for position in positions:
        row = index.remove(position)
        terms = terms_of(row.key, txn.pop(row.key, db=tables.records))
        tally.remove(row.recipe_id, row.size, terms)
        pins.sweep(row.key)
    tally.write(txn, tables)


def position_of(txn: Transaction, tables: Tables, key: bytes) -> int | None:
    """Return the log position of the record under `key`, or None if there is no record.

    Raises:
        CorruptRecordError: If record and log do not agree.
    """
    value = txn.get(key, db=tables.records)
    if value is None:
        return None
    position = position_in(value)
    row = None if position is None else row_at(txn, tables, position)
    if row is None or row.key != key:
        raise CorruptRecordError(f"record {key.hex()} is corrupt: it is not where it says")
    return position


def note_served(txn: Transaction, tables: Tables, keys: Iterable[bytes]) -> None:
    """Count each record as served once for each time it is named; leave out unknown keys."""
    index = Index(txn, tables)
    for key, times in Counter(keys).items():
        position = position_of(txn, tables, key)
        if position is not None:
            index.add_served(position, times)


def is_broken(txn: Transaction, tables: Tables, key: bytes) -> bool:
    """Return whether there is a record under `key` that cannot be read."""
    value = txn.get(key, db=tables.records)
    if value is None:
        return False
    try:
        parse(key, value).check()
    except CorruptRecordError:
        return True
    return False


def drop_if_broken(txn: Transaction, tables: Tables, key: bytes, now: float) -> bool:
    """Remove the record under `key` and all that leads to it if it cannot be read."""
    if not is_broken(txn, tables, key):
        return False
    position = _find(txn, tables, key)
    if position is None:  # nothing leads to it; its counts are left to a repair
        txn.delete(key, db=tables.records)
    else:
        remove(txn, tables, [position], now)
    add_number(txn, tables, "corrupt", 1)
    return True


def _find(txn: Transaction, tables: Tables, key: bytes) -> int | None:
    try:
        return position_of(txn, tables, key)
    except CorruptRecordError:  # its header does not say: look for it in the whole log
        rows = walk_log(txn, tables)
    return next((position for position, row in rows if row.key == key), None)


def terms_of(key: bytes, value: bytes | None) -> IndexTerms | None:
    """Return the index terms of a record, or None if its request cannot be read."""
    if value is None:
        return None
    try:
        seen = read_summary(key, value)
        return index_terms(seen.request, classes=seen.classes)
    except CorruptRecordError:
        return None
