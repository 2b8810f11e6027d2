import struct
import zlib
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache import CacheError, CorruptRecordError
from cache.codecs import CODECS, codec_named, codec_numbered

NUMBERS = {"raw": 0, "png": 1, "jpeg": 2, "webp_lossless": 3, "webp_lossy": 4}
LOSSLESS = sorted(name for name, codec in CODECS.items() if codec.is_lossless)
PILLOW = {"png": "PNG", "jpeg": "JPEG", "webp_lossless": "WEBP", "webp_lossy": "WEBP"}
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def smooth(height, width):
    """Return an image whose colours change slowly, as lossy codecs expect."""
    rows, columns = np.mgrid[:height, :width]
    colours = rows + columns, 2 * rows, 255 - columns
    return np.stack(colours, 2).clip(0, 255).astype(np.uint8)


def saved(image, format, **options):
    buffer = BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def picture(mode="RGB", size=(8, 8)):
    return PIL.Image.new(mode, size, 7 if mode in ("L", "P") else (9, 8, 7, 100)[: len(mode)])


def riff(chunk, payload):
    body = b"WEBP" + chunk + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def huge_png(side):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def test_the_number_of_a_codec_never_changes():
    assert {name: codec.number for name, codec in CODECS.items()} == NUMBERS


@given(images, st.sampled_from(LOSSLESS))
def test_lossless_codecs_give_the_pixels_back(image, name):
    data = CODECS[name].encode(image)
    assert np.array_equal(CODECS[name].decode(data, *image.shape[:2]), image)


@given(images, st.sampled_from(sorted(CODECS)))
def test_every_image_of_any_size_and_noise_can_be_read_again(image, name):
    decoded = CODECS[name].decode(CODECS[name].encode(image), *image.shape[:2])
    assert (decoded.shape, decoded.dtype) == (image.shape, np.uint8)
    assert not decoded.flags.writeable


@pytest.mark.parametrize("name", sorted(set(CODECS) - set(LOSSLESS)))
def test_lossy_codecs_come_close(name):
    image = smooth(60, 70)
    data = CODECS[name].encode(image)
    assert len(data) < image.size / 5
    assert np.abs(CODECS[name].decode(data, 60, 70).astype(int) - image).mean() < 2


def test_jpeg_does_not_halve_the_resolution_of_colours():
    red_and_blue = np.zeros((16, 16, 3), np.uint8)
    red_and_blue[:, ::2, 0] = red_and_blue[:, 1::2, 2] = 255
    decoded = CODECS["jpeg"].decode(CODECS["jpeg"].encode(red_and_blue), 16, 16)
    assert np.abs(decoded.astype(int) - red_and_blue).mean() < 12  # 4:2:0 would be near 60


@given(
    st.sampled_from(sorted(CODECS)), st.integers(0, 400), st.binary(max_size=100), st.integers(0)
)
def test_decoders_refuse_broken_images_with_our_error(name, cut, noise, place):
    data = bytearray(CODECS[name].encode(smooth(12, 15)))
    data[place % len(data)] ^= 1 + place % 255
    try:
        image = CODECS[name].decode(bytes(data[:cut]) + noise + bytes(data[cut:]), 12, 15)
    except CorruptRecordError:
        return
    assert image.shape == (12, 15, 3)


@pytest.mark.parametrize("name", CODECS)
def test_an_image_of_another_size_than_its_header_says_is_refused(name):
    data = CODECS[name].encode(smooth(2, 3))
    with pytest.raises(CorruptRecordError, match="image must be"):
        CODECS[name].decode(data, 3, 3)


@pytest.mark.parametrize("name", sorted(PILLOW))
@pytest.mark.parametrize("other", ["BMP", "GIF", "TIFF", "PNG", "JPEG", "WEBP"])
def test_only_the_format_that_a_record_names_is_decoded(name, other):
    if other == PILLOW[name]:
        other = "PPM"
    with pytest.raises(CorruptRecordError):
        CODECS[name].decode(saved(picture(), other), 8, 8)


@pytest.mark.parametrize(("name", "lossless"), [("webp_lossy", True), ("webp_lossless", False)])
def test_the_two_kinds_of_webp_are_not_confused(name, lossless):
    data = saved(picture(), "WEBP", lossless=lossless)
    with pytest.raises(CorruptRecordError, match="image must be a single VP8L? image of 8 x 8"):
        CODECS[name].decode(data, 8, 8)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("png", "L"), ("png", "P"), ("png", "RGBA"), ("jpeg", "L"), ("jpeg", "CMYK")]
    + [("webp_lossless", "RGBA")],
)
def test_an_image_that_is_not_rgb_is_refused(name, mode):
    data = saved(picture(mode), PILLOW[name], **({"lossless": True} if mode == "RGBA" else {}))
    with pytest.raises(CorruptRecordError, match="image must be RGB 8 x 8, got"):
        CODECS[name].decode(data, 8, 8)


@pytest.mark.parametrize("name", ["webp_lossy", "webp_lossless", "png"])
def test_an_animation_is_refused(name):
    frames = [PIL.Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    data = saved(frames[0], PILLOW[name], save_all=True, append_images=frames[1:])
    with pytest.raises(CorruptRecordError, match="image must be a (single|still)"):
        CODECS[name].decode(data, 8, 8)


def test_a_progressive_jpeg_is_refused_since_two_bytes_can_cost_a_pass_over_all_pixels():
    data = saved(PIL.Image.fromarray(smooth(32, 32)), "JPEG", progressive=True)
    with pytest.raises(CorruptRecordError, match="image must be a still one in a single pass"):
        CODECS["jpeg"].decode(data, 32, 32)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("png", huge_png(8000)),
        ("webp_lossy", riff(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + b"\xff\x3f" * 2 + b"\0" * 8)),
        ("webp_lossless", riff(b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f" + b"\0" * 8)),
        ("webp_lossy", riff(b"VP8X", b"\0" * 4 + b"\xff\x3f\0" * 2)),
        ("webp_lossless", riff(b"VP8X", b"\0" * 4 + b"\xff\x3f\0" * 2)),
    ],
)
def test_a_file_that_claims_to_be_huge_is_refused_before_a_decoder_sees_it(name, data, monkeypatch):
    def unpack(*_):
        raise AssertionError("memory was taken for the claimed size")

    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._open", unpack)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", unpack)
    with pytest.raises(CorruptRecordError, match="image must be .* 4 x 4"):
        CODECS[name].decode(data, 4, 4)


def test_a_webp_file_with_bytes_behind_its_image_is_refused():
    data = CODECS["webp_lossless"].encode(smooth(4, 4))
    with pytest.raises(CorruptRecordError, match="must be a single VP8L image"):
        CODECS["webp_lossless"].decode(data + b"\0\0", 4, 4)


@pytest.mark.parametrize("name", CODECS)
def test_more_bytes_than_an_image_of_that_size_can_need_are_refused(name):
    data = CODECS[name].encode(smooth(4, 4)) + bytes(2**17)
    with pytest.raises(CorruptRecordError, match="image of 4 x 4 must have at most 65632 bytes"):
        CODECS[name].decode(data, 4, 4)


def test_a_header_that_claims_to_be_huge_is_refused():
    with pytest.raises(CorruptRecordError, match="sides must be 1 to 8192 px"):
        CODECS["raw"].decode(b"", 2**31, 2**31)


def test_codecs_are_found_again_by_number_and_name():
    for name, codec in CODECS.items():
        assert codec_named(name) is codec_numbered(codec.number) is codec
    with pytest.raises(CacheError, match="codec must be one of raw, png, .*, got 'gif'"):
        codec_named("gif")
    with pytest.raises(CorruptRecordError, match="got 200"):
        codec_numbered(200)
