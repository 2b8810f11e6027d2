"""What can go wrong with a cache, each in one line a person can act on."""


class CacheError(ValueError):
    """The cache cannot do what was asked: says what, where and the way out."""


class CacheFullError(CacheError):
    """There is no room for what was offered; nothing of that call was stored."""


class CorruptRecordError(CacheError):
    """Stored bytes are not what was written; no image is made from them."""
