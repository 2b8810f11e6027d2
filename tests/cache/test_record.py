from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import CacheError, CorruptRecordError, Entry, request_key
from cache.codecs import CODECS
from cache.record import Draft, parse

REQUEST = {"method": "demo", "strength": 0.5}
CLASSES = {"data_set": "birds-0a", "target_class": "wren"}
KEY = request_key(REQUEST)


def sealed(codec="png", image=None):
    image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(4, 5, 3) if image is None else image
    entry = Entry(REQUEST, image, {"confidence": 0.5}, CLASSES)
    return Draft(entry, CODECS[codec], 12.5).seal(7)


@pytest.mark.parametrize("name", CODECS)
def test_a_parsed_record_is_what_was_sealed(name):
    stored = parse(KEY, sealed(name))
    assert (stored.codec.name, stored.position, stored.created) == (name, 7, 12.5)
    assert (stored.request, stored.scores) == (REQUEST, {"confidence": 0.5})
    assert (stored.classes, stored.class_name("target")) == (CLASSES, "wren")
    assert stored.image.shape == (4, 5, 3)
    assert not stored.image.flags.writeable


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_bit_is_detected(name):
    value = sealed(name)
    for place in range(len(value) * 8):
        broken = bytearray(value)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(CorruptRecordError):
            parse(KEY, bytes(broken))


def test_every_shorter_or_longer_record_is_detected():
    value = sealed()
    for broken in [value[:size] for size in range(len(value))] + [value + b"\0"]:
        with pytest.raises(CorruptRecordError):
            parse(KEY, broken)


def test_a_record_under_another_key_is_detected():
    with pytest.raises(CorruptRecordError, match="belongs to another key"):
        parse(bytes(32), sealed())


def test_a_record_is_checked_as_a_whole_but_its_request_is_decoded_only_when_asked_for():
    request, scores = b"not canonical", b"nor this"
    stored = replace(parse(KEY, sealed()), request_bytes=request, scores_bytes=scores)
    assert stored.image.shape == (4, 5, 3)
    with pytest.raises(CorruptRecordError, match="fields must be canonically encoded"):
        _ = stored.request
    with pytest.raises(CorruptRecordError, match="fields must be canonically encoded"):
        _ = stored.scores
    with pytest.raises(CorruptRecordError, match="fields must be canonically encoded"):
        stored.check()


@given(st.binary(max_size=200))
def test_random_bytes_are_not_a_record(data):
    with pytest.raises(CorruptRecordError):
        parse(KEY, data)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 8193, 3), np.uint8),
    ],
)
def test_an_array_that_is_not_an_image_cannot_be_sealed(image):
    with pytest.raises(CacheError, match="image"):
        sealed(image=image)


def test_an_image_may_be_a_view():
    image = np.random.default_rng(0).integers(0, 256, (3, 6, 4), dtype=np.uint8).transpose(1, 2, 0)
    assert np.array_equal(parse(KEY, sealed("png", image)).image, image)
