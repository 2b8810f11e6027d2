"""A cache that an exchange makes: there with a record in it, or not there."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.errors import CacheError
from cache.location import DATA, LOCK, NOTE, is_started
from cache.soundness import is_in_use
from cache.store import Store


@contextmanager
def new_or_nothing(store: Store) -> Iterator[None]:
    """Takes away what was made for `store` here, where something is raised before a record came."""
    was_there = is_started(store.path)
    missing = [path for path in (store.path, *store.path.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if not was_there and _is_empty(store):
            _take_away(store.path, missing)
        raise


def _is_empty(store: Store) -> bool:
    if not is_started(store.path):
        return True
    try:
        is_empty = not len(store)
    except CacheError:
        return False
    store.close()
    return is_empty and not is_in_use(store.path)


def _take_away(path: Path, missing: list[Path]) -> None:
    for name in (DATA, LOCK, NOTE):
        (path / name).unlink(missing_ok=True)
    for folder in missing:
        with suppress(OSError):  # somebody has put something there meanwhile, or it was not made
            folder.rmdir()
