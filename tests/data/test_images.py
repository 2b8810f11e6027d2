"""Every kind of image file is decoded to upright uint8 RGB or refused by one error."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    BadImageError,
    check_header,
    decode_image,
    read_image,
    to_rgb,
)

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(5, 7)


def save(image, path, **options):
    image.save(path, **options)
    return path


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, depth, colour_type, rows):
    """Encode a PNG by hand: PIL cannot write 16-bit colour or a false size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff_rgb16(pixels):
    """Encode an uncompressed little-endian 16-bit RGB TIFF."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    entries = [  # tag, type (3 short, 4 long), count, value; the bit depths lie after the pixels
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8 + len(data)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    table = struct.pack("<H", len(entries))
    table += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    start = 8 + len(data) + 6
    return b"II" + struct.pack("<HI", 42, start) + data + struct.pack("<3H", 16, 16, 16) + table


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_rgb_is_read_back_exactly(tmp_path, suffix):
    path = save(PIL.Image.fromarray(COLOUR), tmp_path / f"a.{suffix}", lossless=True)
    np.testing.assert_array_equal(read_image(path), COLOUR)


def test_greyscale_has_three_equal_channels(tmp_path):
    image = read_image(save(PIL.Image.fromarray(GREY), tmp_path / "a.png"))
    np.testing.assert_array_equal(image, np.stack([GREY] * 3, axis=2))


def test_one_bit_images_are_black_and_white(tmp_path):
    path = save(PIL.Image.fromarray(GREY > 127), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path)[..., 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_images_have_the_colours_of_the_palette(tmp_path, suffix):
    image = PIL.Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), "P")
    image.putpalette([value for k in range(12) for value in (k * 20, 255 - k, k)])
    expected = [[k * 20, 255 - k, k] for k in range(12)]
    np.testing.assert_array_equal(
        read_image(save(image, tmp_path / f"a.{suffix}")).reshape(-1, 3), expected
    )


def test_the_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    path = save(image, tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_image(path), [[[255] * 3, [40, 50, 60]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path, mode):
    image = PIL.Image.new(mode, (3, 1), 0)
    channels = len(image.getbands()) - 1
    for place, alpha in enumerate((0, 51, 255)):
        image.putpixel((place, 0), (100,) * channels + (alpha,))
    pixels = read_image(save(image, tmp_path / "a.png"))[0, :, 0]
    np.testing.assert_array_equal(pixels, [255, 0.8 * 255 + 0.2 * 100, 100])


@pytest.mark.parametrize(("mode", "value"), [("RGBa", (25, 25, 25, 51)), ("La", (25, 51))])
def test_premultiplied_alpha_is_composited_on_white(mode, value):
    pixels = to_rgb(PIL.Image.new(mode, (1, 1), value))
    np.testing.assert_allclose(pixels, 0.8 * 255 + 25, atol=1)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_keeps_its_colours(tmp_path, suffix):
    red = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read_image(save(red, tmp_path / f"a.{suffix}"))
    np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=4)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    path = save(PIL.Image.fromarray(DEEP), tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(path)[..., 1], (DEEP / 257).round())


def test_16_bit_colour_is_scaled_and_not_clipped(tmp_path):
    deep = np.stack([DEEP, DEEP[::-1], DEEP], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    for name, content in {"a.png": png(7, 5, 16, 2, rows), "a.tif": tiff_rgb16(deep)}.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_allclose(read_image(tmp_path / name), deep / 257, atol=1)


@pytest.mark.parametrize("read", [read_image, check_header])
@pytest.mark.parametrize("value", [200, 70_000])
@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, mode, value, read):
    path = save(PIL.Image.new(mode, (4, 4), value), tmp_path / "a.tif")
    with pytest.raises(
        BadImageError, match=r"a\.tif cannot be read: .*convert the file to 8 or 16"
    ):
        read(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_exif_rotation_is_applied(tmp_path, suffix):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown correctly after a clockwise quarter turn
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(COLOUR).save(path, exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(path), np.rot90(COLOUR, -1))


def test_exif_rotation_is_applied_to_16_bit_grey(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(DEEP).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png")[..., 0], np.rot90((DEEP / 257).round(), -1)
    )


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image of a known format"),
        (b"hello", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (png(4, 4, 8, 0, b"\0\0"), "truncated"),
    ],
    ids=["empty", "text", "postscript", "truncated"],
)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(tmp_path, content, reason):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"broken\.png cannot be read: .*{reason}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadImageError, match=r"gone\.png cannot be read: No such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b""))
    for read in (check_header, read_image):
        with pytest.raises(BadImageError, match=r"bomb\.png cannot be read: .*limit"):
            read(tmp_path / "bomb.png")


def test_the_header_check_does_not_decode(tmp_path):
    (tmp_path / "body.png").write_bytes(png(4, 4, 8, 0, b"\0\0"))  # too few pixels, but an end
    check_header(tmp_path / "body.png")


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read_by_their_suffixes(tmp_path, form):
    path = tmp_path / {"AVIF": "a.avif", "JPEG2000": "a.jp2"}[form]
    PIL.Image.fromarray(np.tile(COLOUR, (8, 8, 1))).save(path, form)
    assert path.suffix in IMAGE_SUFFIXES
    check_header(path)
    assert read_image(path).shape == (40, 56, 3)


def test_a_colour_profile_of_several_mebibytes_is_no_reason_to_refuse(tmp_path):
    path = tmp_path / "profile.png"
    profile = RNG.integers(0, 4, 3 * 2**20, dtype=np.uint8).tobytes()
    PIL.Image.fromarray(COLOUR).save(path, icc_profile=profile)
    check_header(path)
    np.testing.assert_array_equal(read_image(path), COLOUR)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF"])
def test_the_header_check_finds_a_file_that_was_cut_short(tmp_path, form):
    path = tmp_path / "cut"
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path, form)
    check_header(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BadImageError, match="cut cannot be read"):
        check_header(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "y.png").symlink_to("/dev/zero")
    (tmp_path / "z.png").symlink_to(tmp_path / "none")
    for name, reason in [("x", "not a regular file"), ("y", "not a reg"), ("z", "No such file")]:
        for read in (check_header, read_image):
            with pytest.raises(BadImageError, match=rf"{name}\.png cannot be read: .*{reason}"):
                read(tmp_path / f"{name}.png")


def test_the_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(BadImageError("image a.png cannot be read: why")))
    assert str(error) == "image a.png cannot be read: why"


def _encoded(form):
    buffer = io.BytesIO()
    PIL.Image.fromarray(COLOUR).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
@given(data=st.data())
def test_a_damaged_file_gives_an_image_or_our_error(form, data):
    content = bytearray(_encoded(form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        image = decode_image(bytes(content), "damaged")
    except BadImageError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 100),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    st.booleans(),
    st.booleans(),
)
def test_a_jpeg_has_the_pixels_that_pillow_decodes(
    height, width, quality, subsampling, progressive, keep_rgb
):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {"quality": quality, "progressive": progressive, "keep_rgb": keep_rgb}
    options |= {} if keep_rgb else {"subsampling": subsampling}
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", **options)
    decoded = decode_image(buffer.getvalue(), "a.jpg")
    assert decoded.flags.writeable
    assert np.array_equal(decoded, np.asarray(PIL.Image.open(buffer)))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused(share):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.tile(COLOUR, (20, 20, 1))).save(buffer, "JPEG")
    content = buffer.getvalue()
    with pytest.raises(BadImageError, match=r"image a\.jpg cannot be read: \S"):
        decode_image(content[: int(share * len(content))], "a.jpg")
