"""The bytes on disk are those that `docs/CACHE_FORMAT.md` promises to other programs."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from cache import Entry, Store, recipe_of, request_key
from cache.backend import index
from cache.backend.saliency import version_id
from cache.backend.tables import stored_size
from cache.codecs import CODECS
from cache.keys import index_terms
from cache.record import Draft

TEXT = re.sub(r"\s", "", (Path(__file__).parents[2] / "docs/CACHE_FORMAT.md").read_text())
REQUEST = {"method": "diff_mix", "resolution": 64, "source_digest": "ab", "variant": 0}
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
CLASSES = {"data_set": "birds-0a", "source_class": "wren"}
ENTRY = Entry(REQUEST, PIXELS, {"confidence": 0.5}, CLASSES)
TERMS = index_terms(REQUEST)


def row():
    return index.Row(request_key(REQUEST), TERMS.recipe_id, TERMS.source_id, 12.5, 216, 3, 4, 2)


@pytest.mark.parametrize(
    "vector",
    [
        request_key(REQUEST),
        TERMS.recipe,
        TERMS.recipe_id,
        TERMS.source_id,
        version_id("v1"),
        Draft(ENTRY, CODECS["raw"], 12.5).seal(7),
        row().to_bytes(),
    ],
)
def test_the_documentation_has_the_right_test_vectors(vector):
    assert vector.hex() in TEXT


def test_the_tables_of_one_record_are_as_documented(tmp_path):
    with Store(tmp_path, codec="raw") as store:
        store.put_many([ENTRY])
        store.note_served([request_key(REQUEST)] * 3)
        with store._environment.transaction() as (txn, tables):
            found = {name: list(txn.cursor(table)) for name, table in tables._asdict().items()}
    place, key = struct.pack(">Q", 1), request_key(REQUEST)
    ordinal = struct.pack(">Q", 0)
    assert [name for name, _ in found["log"]] == [place]
    assert found["members"] == sorted(
        [(b"\xff" * 16 + ordinal, place + key), (TERMS.recipe_id + ordinal, place)]
    )
    (size,) = (len(value) for _, value in found["records"])
    assert found["recipes"] == [(TERMS.recipe_id, struct.pack(">QQ", 1, size) + TERMS.recipe)]
    assert found["by_source"] == [(TERMS.source_id + place, b"")]
    assert found["served"] == [(struct.pack(">I", 3) + place, b"")]
    assert recipe_of(REQUEST) == {"method": "diff_mix", "resolution": 64}


@pytest.mark.parametrize(
    ("size", "stored"), [(100, 142), (1996, 2038), (1997, 4096), (4080, 4096), (4081, 8192)]
)
def test_a_record_is_counted_with_the_pages_it_takes(size, stored):
    assert stored_size(size) == stored
