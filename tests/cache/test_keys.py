import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import CacheError, CorruptRecordError, canonical_bytes, decode_fields, request_key
from cache.keys import canonical_fields

# Encoded and digested by hand with struct and hashlib, not with the code under test.
VECTORS = [
    (
        {"variant": 0, "method": "diff_mix"},
        "00066d6574686f647300000008646966665f6d6978000776617269616e74690000000130",
        "d67bf61cbc112055783eff5ef6e48ae403bb8311fc58cf117cfee76a612ee432",
    ),
    (
        {"e": "é", "d": 0.5, "c": -7, "b": True, "a": None},
        "0001616e0000000000016262000000010100016369000000022d37"
        "00016466000000083fe00000000000000001657300000002c3a9",
        "b4e26a0aff607745ead790636228133b34c2116eeba923553c8a1583e4ed3061",
    ),
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
requests = st.dictionaries(st.text(max_size=8), scalars, max_size=6)


def typed(fields):
    return {name: (type(value), value) for name, value in fields.items()}


@pytest.mark.parametrize(("fields", "encoded", "digest"), VECTORS)
def test_keys_follow_the_published_vectors(fields, encoded, digest):
    assert canonical_bytes(fields).hex() == encoded
    assert request_key(fields).hex() == digest


def test_the_document_states_the_vectors():
    text = (Path(__file__).parents[2] / "docs/CACHE_FORMAT.md").read_text().replace("\n", "")
    for _, encoded, digest in VECTORS:
        assert encoded in text.replace(" ", "")
        assert digest in text


@given(requests)
def test_decoding_gives_the_fields_back(fields):
    assert typed(decode_fields(canonical_bytes(fields))) == typed(fields)


@given(requests, requests)
def test_different_fields_have_different_keys(one, other):
    assert (request_key(one) == request_key(other)) == (typed(one) == typed(other))


@given(requests.filter(bool), st.data())
def test_changing_any_one_field_changes_the_key(fields, data):
    name = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(scalars)
    changed = {**fields, name: value}
    assert (request_key(changed) == request_key(fields)) == (typed(changed) == typed(fields))


@given(requests, st.randoms())
def test_the_order_of_fields_does_not_matter(fields, random):
    items = list(fields.items())
    random.shuffle(items)
    assert canonical_bytes(dict(items)) == canonical_bytes(fields)


@given(requests, st.data())
def test_the_joined_parts_of_some_fields_are_their_encoding(fields, data):
    kept = data.draw(st.sets(st.sampled_from(sorted(fields)))) if fields else set()
    rest = {name: value for name, value in fields.items() if name in kept}
    parts = canonical_fields(fields)
    assert b"".join(part for name, part in parts.items() if name in rest) == canonical_bytes(rest)


@given(st.binary(max_size=60) | requests.map(canonical_bytes), st.integers(0, 59), st.binary())
def test_decoding_accepts_only_what_encoding_writes(data, cut, more):
    data = data[:cut] + more
    try:
        fields = decode_fields(data)
    except CorruptRecordError:
        return
    assert canonical_bytes(fields) == data


def test_values_of_different_types_are_different_requests():
    assert len({request_key({"x": value}) for value in (True, 1, 1.0, "1")}) == 4


def test_minus_zero_is_zero():
    assert request_key({"x": -0.0}) == request_key({"x": 0.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": math.nan}, "'x' must be a number, got nan"),
        ({"x": [1]}, "'x' must be None, bool, int, float or str, got list"),
        ({"x": b"raw"}, "got bytes"),
        ({1: "x"}, "field names must be strings, got 1"),
        ({"x": "\ud800"}, "must be encodable as UTF-8"),
        ({"x": 10**100}, "at most 100 digits"),
        ({"x" * 70_000: 1}, "must be at most 65535 bytes"),
        ({"x": "y" * 2_000_000}, "must be at most 1048576 bytes"),
    ],
)
def test_a_field_that_cannot_be_encoded_is_named(fields, message):
    with pytest.raises(CacheError, match=message):
        canonical_bytes(fields)
