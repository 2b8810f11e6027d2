"""Shards of other programs: names with dots, names that repeat, headers that lie about sizes."""

import io
import tarfile

import pytest
from exchange_samples import bird

from cache.codecs import CODECS
from cache.errors import CacheError
from cache.exchange.folder_formats import ImportFolder
from cache.exchange.webdataset import read_shards


def picture(number):
    return CODECS["png"].encode(bird(number).image)


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return ImportFolder(root=path)


def found_in(source):
    """Return class and file of every image that a shard gives, by its name."""
    return [
        (name.partition(": ")[2], load().request.get("target_label"))
        for name, load in read_shards(source)
    ]


def test_names_with_dots_are_images_of_their_own(tmp_path):
    members = [
        *(("IMG_1.5.png", picture(0)), ("IMG_1.5.cls", b"3")),
        *(("IMG_1.6.png", picture(1)), ("IMG_1.6.cls", b"4")),
        *(("a.left.png", picture(2)), ("a.right.png", picture(3)), ("a.cls", b"5")),
        ("photo.final.v2.PNG", picture(4)),
    ]
    assert found_in(write_shard(tmp_path / "s.tar", members)) == [
        *(("IMG_1.5", 3), ("IMG_1.6", 4), ("a.left", 5), ("a.right", 5)),
        ("photo.final.v2", None),
    ]


def test_of_two_members_of_one_name_none_is_dropped(tmp_path):
    members = [("a.png", picture(0)), ("a.cls", b"1"), ("a.png", picture(1)), ("a.cls", b"2")]
    assert found_in(write_shard(tmp_path / "s.tar", members)) == [("a", 1), ("a", 2)]


def test_two_formats_of_one_image_are_still_refused(tmp_path):
    members = [("a.png", picture(0)), ("a.jpg", picture(1))]
    ((_, load),) = read_shards(write_shard(tmp_path / "s.tar", members))
    with pytest.raises(CacheError, match="one image of this name, got 2"):
        load()


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"S", b"5"])
@pytest.mark.parametrize("size", [2**60, 2**63, 2**80])
def test_a_size_beyond_the_file_is_one_line(tmp_path, kind, size):
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = bytes([0o200]) + size.to_bytes(11, "big")  # GNU's form to the base of 256
    header[156:157], header[148:156] = kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "s.tar").write_bytes(bytes(header) + b"x" * 1024 + bytes(1024))
    ((_, load),) = read_shards(ImportFolder(root=tmp_path / "s.tar"))
    with pytest.raises(CacheError, match="shard must be a whole tar file: "):
        load()
