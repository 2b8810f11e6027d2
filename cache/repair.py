"""Taking out what is broken, so that it can be made again, and mending what leads to the rest."""

from collections.abc import Iterable

from cache import contents, log, saliency
from cache.environment import Environment
from cache.errors import CorruptRecordError
from cache.rebuild import rebuild
from cache.record import parse
from cache.tables import Tables, Transaction, add_number


def mend(environment: Environment, keys: Iterable[bytes]) -> list[bytes]:
    """Drop broken records among `keys`, and write all that follows from the others anew.

    One transaction: nobody else writes meanwhile, all may read. What it drops is returned.
    """
    with environment.transaction(write=True) as (txn, tables):
        dropped = [key for key in keys if _is_broken(txn, tables, key)]
        for key in dropped:
            txn.delete(key, db=tables.records)
        dropped += rebuild(txn, tables)[1]
        saliency.drop_unreadable(txn, tables)
        add_number(txn, tables, "corrupt", len(dropped))
    return dropped


def drop_if_broken(txn: Transaction, tables: Tables, key: bytes, now: float) -> bool:
    """Take out the record under `key` with all that leads to it, if it cannot be read."""
    if not _is_broken(txn, tables, key):
        return False
    position = _find(txn, tables, key)
    if position is None:  # nothing leads to it; what was counted of it is left to a repair
        txn.delete(key, db=tables.records)
    else:
        contents.remove(txn, tables, [position], now)
    add_number(txn, tables, "corrupt", 1)
    return True


def _is_broken(txn: Transaction, tables: Tables, key: bytes) -> bool:
    value = txn.get(key, db=tables.records)
    if value is None:
        return False
    try:
        parse(key, value).check()
    except CorruptRecordError:
        return True
    return False


def _find(txn: Transaction, tables: Tables, key: bytes) -> int | None:
    try:
        return contents.position_of(txn, tables, key)
    except CorruptRecordError:  # its header does not say: look for it in the whole log
        rows = log.walk(txn, tables)
    return next((position for position, row in rows if row.key == key), None)
