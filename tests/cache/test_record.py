import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache import CacheError, CorruptRecordError, Entry, request_key
from cache.codec import CODECS, codec_named, codec_numbered
from cache.record import Draft, parse

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
REQUEST = {"method": "demo", "strength": 0.5}
KEY = request_key(REQUEST)


def sealed(codec="png", image=None):
    image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(4, 5, 3) if image is None else image
    return Draft(Entry(REQUEST, image, {"confidence": 0.5}), CODECS[codec], 12.5).seal(7)


@given(images, st.sampled_from(["png", "raw"]))
def test_lossless_codecs_give_the_pixels_back(image, name):
    data = CODECS[name].encode(image)
    assert np.array_equal(CODECS[name].decode(data, *image.shape[:2]), image)


def test_jpeg_keeps_colours_of_neighbouring_pixels_apart():
    red_and_blue = np.zeros((16, 16, 3), np.uint8)
    red_and_blue[:, ::2, 0] = red_and_blue[:, 1::2, 2] = 255
    decoded = CODECS["jpeg"].decode(CODECS["jpeg"].encode(red_and_blue), 16, 16)
    assert np.abs(decoded.astype(int) - red_and_blue).mean() < 12  # 4:2:0 would be near 60


@pytest.mark.parametrize("name", CODECS)
def test_a_parsed_record_is_what_was_sealed(name):
    stored = parse(KEY, sealed(name))
    assert (stored.codec.name, stored.position, stored.created) == (name, 7, 12.5)
    assert (stored.request, stored.scores) == (REQUEST, {"confidence": 0.5})
    assert stored.decode().image.shape == (4, 5, 3)
    assert not stored.decode().image.flags.writeable


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


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_record(data):
    with pytest.raises(CorruptRecordError):
        parse(KEY, data)


@given(st.sampled_from(sorted(CODECS)), st.binary(max_size=100), st.integers(0, 80))
def test_decoders_refuse_broken_images_with_a_worded_error(name, noise, cut):
    codec = CODECS[name]
    data = codec.encode(np.zeros((2, 3, 3), np.uint8))[:cut] + noise
    try:
        image = codec.decode(data, 2, 3)
    except CorruptRecordError:
        return
    assert image.shape == (2, 3, 3)


@pytest.mark.parametrize("name", CODECS)
def test_an_image_of_another_size_than_its_header_says_is_refused(name):
    data = CODECS[name].encode(np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(CorruptRecordError, match="must be"):
        CODECS[name].decode(data, 3, 3)


def test_a_file_that_claims_to_be_huge_is_refused_before_it_is_unpacked():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")
    with pytest.raises(CorruptRecordError, match="must be RGB 4 x 4"):
        CODECS["png"].decode(png, 4, 4)


def test_a_header_that_claims_to_be_huge_is_refused():
    with pytest.raises(CorruptRecordError, match="sides must be 1 to 8192 px"):
        CODECS["raw"].decode(b"", 2**31, 2**31)


def test_codecs_are_found_again_by_number_and_name():
    for name, codec in CODECS.items():
        assert codec_named(name) is codec_numbered(codec.number) is codec
    with pytest.raises(CacheError, match="codec must be one of raw, png, jpeg, got 'gif'"):
        codec_named("gif")
    with pytest.raises(CorruptRecordError, match="got 200"):
        codec_numbered(200)


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
def test_what_is_no_image_cannot_be_sealed(image):
    with pytest.raises(CacheError, match="image"):
        sealed(image=image)


def test_an_image_may_be_a_view():
    image = np.random.default_rng(0).integers(0, 256, (3, 6, 4), dtype=np.uint8).transpose(1, 2, 0)
    assert np.array_equal(parse(KEY, sealed("png", image)).decode().image, image)
