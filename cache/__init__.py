"""A durable store of generated images under the digest of what decided their pixels.

Knows nothing of diffusion or training: NumPy, LMDB and Pillow, no torch and no pickle. The format
is in `docs/CACHE.md`.
"""

from cache.backend.claims import Owner
from cache.backend.directory import cache_exists
from cache.backend.eviction import Keys, Oldest, Policy, RecipeFirst, ServedFirst
from cache.backend.maintenance import VerifyReport
from cache.backend.operations import Status
from cache.backend.tables import Recipe
from cache.errors import CacheError, CacheFullError, CorruptRecordError
from cache.keys import (
    KEY_BYTES,
    Scalar,
    canonical_bytes,
    content_digest,
    decode_fields,
    recipe_of,
    request_key,
)
from cache.record import Entry, Record
from cache.store import Store
from cache.writer import Writer

__all__ = [
    "KEY_BYTES",
    "CacheError",
    "CacheFullError",
    "CorruptRecordError",
    "Entry",
    "Keys",
    "Oldest",
    "Owner",
    "Policy",
    "Recipe",
    "RecipeFirst",
    "Record",
    "Scalar",
    "ServedFirst",
    "Status",
    "Store",
    "VerifyReport",
    "Writer",
    "cache_exists",
    "canonical_bytes",
    "content_digest",
    "decode_fields",
    "recipe_of",
    "request_key",
]
