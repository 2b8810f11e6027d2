"""Errors of a cache. Each message is one line that says what is wrong and what to do."""


class CacheError(ValueError):
    """The cache cannot do what was asked."""


class CacheFullError(CacheError):
    """There is no room for the new data. Nothing of the failed call was stored."""


class CorruptRecordError(CacheError):
    """Stored bytes have changed since they were written. They are never served."""
