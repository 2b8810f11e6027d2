"""The cache as a configuration wants it."""

from cache import Oldest, Policy, ServedFirst, Store
from online_aug.config import Config


def open_store(config: Config) -> Store:
    """The cache of a configuration, created where it is missing.

    Raises:
        CacheError: If the path cannot be a cache.
    """
    settings = config.cache
    return Store(
        settings.path,
        codec=settings.codec,
        max_gib=settings.max_gib,
        policy=eviction_policy(config),
        durability=settings.durability,
    )


def eviction_policy(config: Config) -> Policy | None:
    """What goes first where the cache is full; None keeps everything."""
    match config.cache.eviction:
        case "served":
            return ServedFirst(config.mixing.max_times_sampled or 1)
        case "oldest":
            return Oldest()
        case None:
            return None
