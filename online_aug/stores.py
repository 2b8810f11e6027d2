"""The cache as a configuration wants it."""

from collections.abc import Sequence

from cache import Oldest, Owner, Policy, ServedFirst, Store
from cache.codec import DEFAULT_CODEC
from online_aug.config import Config
from online_aug.dataloader.image_sets import ImageSet, file_names_of

_PIN_S = 366 * 86_400.0
"""Longer than any run; a pin ends with its process."""


_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def codec_for(codec: str, train: ImageSet) -> str:
    """The codec of `cache.codec` for images generated from `train`."""
    if codec != "auto":
        return codec
    names = file_names_of(train)
    jpegs = sum(name.lower().endswith(_JPEG_SUFFIXES) for name in names)
    return "jpeg" if 2 * jpegs > len(names) else DEFAULT_CODEC


def open_store(config: Config, train: ImageSet) -> Store:
    """The cache of a configuration, created where it is missing.

    Args:
        config: Where it is, how images are stored in it, and what bounds it.
        train: The images beside which generated ones are served.

    Raises:
        CacheError: If the path cannot be a cache.
    """
    settings = config.cache
    return Store(
        settings.path,
        codec=codec_for(settings.codec, train),
        max_gib=settings.max_gib,
        policy=eviction_policy(config),
        durability=settings.durability,
    )


def pin_if_awaited(store: Store, config: Config, keys: Sequence[bytes]) -> None:
    """Keep what a run waits for, again and again, from eviction while this process lives."""
    if config.mixing.starvation == "wait":
        pin(store, keys)


def pin(store: Store, keys: Sequence[bytes]) -> None:
    """Keep images from eviction while this process lives."""
    if store.max_gib is not None:
        store.pin(keys, Owner.current(), _PIN_S)


def eviction_policy(config: Config) -> Policy | None:
    """What goes first where the cache is full; None keeps everything."""
    match config.cache.eviction:
        case "served":
            return ServedFirst(config.mixing.max_times_sampled or 1)
        case "oldest":
            return Oldest()
        case None:
            return None
