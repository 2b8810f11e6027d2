"""A durable store of generated images under the digest of the request that decided their pixels.

It knows nothing of diffusion or training, and needs NumPy, LMDB and Pillow only: no torch, no
pickle. `docs/CACHE_FORMAT.md` describes the format.
"""

from cache.backend.claims import Owner, Status
from cache.backend.directory import cache_exists, check_usable
from cache.backend.eviction import Keys, Oldest, Policy, RecipeFirst, ServedFirst
from cache.backend.tables import Recipe
from cache.backend.verify import VerifyReport
from cache.errors import CacheError, CacheFullError, CorruptRecordError
from cache.keys import (
    KEY_BYTES,
    Scalar,
    canonical_bytes,
    content_digest,
    decode_fields,
    label_of,
    recipe_of,
    request_key,
)
from cache.record import Entry, Record
from cache.rejection import Rejection
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
    "Rejection",
    "Scalar",
    "ServedFirst",
    "Status",
    "Store",
    "VerifyReport",
    "Writer",
    "cache_exists",
    "canonical_bytes",
    "check_usable",
    "content_digest",
    "decode_fields",
    "label_of",
    "recipe_of",
    "request_key",
]
