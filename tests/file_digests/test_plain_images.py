"""A plain header is one in which the library that reads all formats finds nothing to refuse."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.data import images
from online_aug.data.images import BadImageError, check_content
from online_aug.file_digests.plain_images import is_plain_image


def encoded(format, mode="RGB", size=(9, 6), **options):
    content = io.BytesIO()
    PIL.Image.new(mode, size).save(content, format, **options)
    return content.getvalue()


def text():
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Comment", "a bird")
    return info


PLAIN = {
    "rgb png": encoded("PNG"),
    "grey png": encoded("PNG", "L"),
    "png of 16 bits": encoded("PNG", "I;16"),
    "png with a palette": encoded("PNG", "P"),
    "black and white png": encoded("PNG", "1"),
    "transparent png": encoded("PNG", "RGBA"),
    "png with words": encoded("PNG", pnginfo=text(), dpi=(72, 72)),
    "rgb jpeg": encoded("JPEG"),
    "grey jpeg": encoded("JPEG", "L"),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "jpeg with a profile": encoded("JPEG", icc_profile=b"x" * 90_000),
}
OTHERS = {
    "gif": encoded("GIF", "P"),
    "webp": encoded("WEBP"),
    "bmp": encoded("BMP"),
    "jpeg of a camera": encoded("JPEG", exif=PIL.Image.Exif().tobytes()),
    "animated png": encoded("PNG", save_all=True, append_images=[PIL.Image.new("RGB", (9, 6), 9)]),
    "nothing": b"",
    "text": b"no image at all",
}


@pytest.mark.parametrize("name", PLAIN)
def test_ordinary_files_are_plain(name):
    assert is_plain_image(PLAIN[name], PLAIN[name])


@pytest.mark.parametrize("name", OTHERS)
def test_all_others_are_left_to_the_library(name):
    assert not is_plain_image(OTHERS[name], OTHERS[name])


def checked_by_library(content, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(images, "is_plain_image", lambda head, tail: False)
        try:
            check_content(content, "x")
        except BadImageError as error:
            return str(error)
    return None


@pytest.mark.parametrize("name", PLAIN)
def test_no_cut_file_is_plain_unless_the_library_takes_it(name, monkeypatch):
    content = PLAIN[name]
    for end in sorted({*range(0, min(len(content), 700), 7), len(content) - 1, len(content) - 13}):
        if is_plain_image(content[:end], content[:end]):
            assert checked_by_library(content[:end], monkeypatch) is None


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(sorted(PLAIN)), st.data())
def test_no_damaged_file_is_plain_unless_the_library_takes_it(name, data):
    content = bytearray(PLAIN[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content) - 1, 700)))] = data.draw(
            st.integers(0, 255)
        )
    found = bytes(content)
    if is_plain_image(found, found):
        assert checked_by_library(found, pytest.MonkeyPatch()) is None


def test_an_image_too_large_to_decode_is_not_plain():
    header = struct.pack(">II5B", 2**14, 2**14, 8, 2, 0, 0, 0)
    small = PLAIN["rgb png"]
    chunk = b"IHDR" + header
    large = small[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]
    assert not is_plain_image(large, large)
    with pytest.raises(BadImageError, match="16384 x 16384|decompression bomb|exceeds limit"):
        check_content(large, "x")


def test_what_is_read_of_a_large_file_is_its_beginning_and_its_end(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(PIL.Image, "open", lambda *a, **k: pytest.fail("left to the library"))
    images.check_header(tmp_path / "x.png")
