"""Nothing in a foreign file can lead out of its folder, fill the memory or break an import."""

import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from exchange_samples import assert_refused, bird, contents, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import CacheError, CorruptRecordError, Entry, Store, request_key
from cache.codecs import CODECS
from cache.exchange.image_files import pixels_of
from cache.exchange.metadata import ClassNames, safe_name
from cache.record import Draft, parse

HOSTILE = ["../../up", "/etc", "..", ".", "", "a/b", "a\\b", "\x00", "con", "x" * 300, "a\nb", "~"]


@settings(max_examples=40)
@given(st.text() | st.sampled_from(HOSTILE))
def test_a_safe_name_is_one_plain_name(name):
    safe = safe_name(name)
    assert safe not in ("", ".", "..")
    assert not set(safe) & set('/\\\0\n:*?"<>|')
    assert len(safe.encode()) <= 101
    assert safe.isprintable()
    assert not safe.startswith(".")


@settings(max_examples=40)
@given(st.lists(st.text() | st.sampled_from(["a", "A", "a ", "a/", "a_", "a-1"]), max_size=8))
def test_classes_never_share_a_folder(names):
    for classes in (ClassNames(names), ClassNames()):
        named = names if classes.names else dict.fromkeys(names)  # by label, or by own name
        folders = [classes.folder_in(labelled(n, name), "target") for n, name in enumerate(named)]
        assert len({folder.casefold() for folder in folders}) == len(folders)


def labelled(label, name):
    """Return a record of a class."""
    request, image = {"target_label": label, "target_class": name}, np.zeros((1, 1, 3), np.uint8)
    entry = Entry(request, image)
    return parse(request_key(request), Draft(entry, CODECS["raw"], 1.0).seal(1))


@pytest.mark.parametrize("format", ["folder", "diff-mix", "webdataset"])
def test_hostile_class_names_cannot_leave_the_target(format, birds, tmp_path, run):
    names = tmp_path / "names.txt"
    names.write_text("../../../up\n/etc/passwd\n..\nname\x00\n")
    before = sorted(tmp_path.parent.rglob("*"))
    status, _, _ = run("export", birds, tmp_path / "o", "--format", format, "--classes", names)
    assert status == 0
    after = sorted(set(tmp_path.parent.rglob("*")) - set(before))
    assert len(after) > 1
    assert all(path.is_relative_to(tmp_path / "o") for path in after)
    assert run("import", tmp_path / "back", tmp_path / "o")[0] == 0
    assert contents(tmp_path / "back") == contents(birds)


def problems_after(edit, birds, tmp_path, run):
    """Export, change all rows but the first by `edit(row)`, import, and return the problems."""
    run("export", birds, tmp_path / "o")
    table = tmp_path / "o/metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    edited = [row | edit(row) if n else row for n, row in enumerate(rows)]
    table.write_text("".join(json.dumps(row) + "\n" for row in edited))
    status, out, err = run("import", tmp_path / "back", tmp_path / "o", "--json")
    report = json.loads(out)
    assert (status, report["done"], report["broken"], err) == (1, 1, 23, "")
    return {problem["problem"] for problem in report["problems"]}


@pytest.mark.parametrize("path", ["../../secret.png", "{root}/secret.png", "a/../../secret.png"])
def test_no_path_of_a_table_leads_out_of_its_folder(path, birds, tmp_path, run):
    write_image(tmp_path / "secret.png")
    name = path.format(root=tmp_path)
    (problem,) = problems_after(lambda row: {"file_name": name}, birds, tmp_path, run)
    assert problem.startswith("path must stay inside the folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": "{"}, "request must be JSON"),
        ({"request": "[" * 100_000}, "request must be JSON"),
        ({"request": "[1]"}, "request must be a flat JSON object"),
        ({"request": '{"a": {"b": 1}}'}, "request must be a flat JSON object"),
        ({"request": '{"a": NaN}'}, "field 'a' must be a number, got nan"),
        ({"request": '{"a": 1}'}, "key must be the request's own"),
        ({"key": "0"}, "key must be the request's own"),
        ({"created": "yesterday"}, "created and scores must be numbers"),
        ({"created": "nan"}, "created and scores must be numbers, got nan"),
        ({"scores": '{"a": "b"}'}, "scores must be numbers"),
        ({"file_name": ""}, "path must stay inside the folder, got ''"),
        ({"file_name": "metadata.jsonl"}, "image must decode"),
        ({"file_name": "none.png"}, "file must be a plain one that can be read: No such file"),
        ({"file_name": "0000"}, "file must be a plain one, not a folder, device or pipe"),
        ({"file_name": "a\x00b"}, "path must stay inside the folder"),
        (
            {"file_name": "x" * 5000},
            "file must be a plain one that can be read: File name too long",
        ),
    ],
)
def test_a_bad_row_costs_its_own_image_only(change, message, birds, tmp_path, run):
    problems = problems_after(lambda row: change, birds, tmp_path, run)
    assert all(message in problem for problem in problems)


def test_links_and_pipes_are_not_followed(tmp_path, run):
    write_image(tmp_path / "outside/a/secret.png", 1)
    write_image(tmp_path / "p/a/good.png", 2)
    (tmp_path / "p/a/link.png").symlink_to(tmp_path / "outside/a/secret.png")
    (tmp_path / "p/linked").symlink_to(tmp_path / "outside/a")
    os.mkfifo(tmp_path / "p/a/pipe.png")
    status, out, _ = run("import", tmp_path / "c", tmp_path / "p", "--json")
    report = json.loads(out)
    assert (status, report["done"]) == (1, 1)
    assert {problem["name"] for problem in report["problems"]} == {"a/link.png", "a/pipe.png"}


def test_members_of_a_shard_that_are_no_plain_files_are_left_out_and_named(tmp_path, run):
    write_image(tmp_path / "x.png", 1)
    image = (tmp_path / "x.png").read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("../../good.png")
        member.size = len(image)
        tar.addfile(member, io.BytesIO(image))
    before = sorted(tmp_path.parent.parent.glob("*"))
    status, out, _ = run("import", tmp_path / "c", tmp_path / "s.tar", "--json")
    report = json.loads(out)
    assert (status, report["done"], report["broken"]) == (1, 1, 2)
    assert {p["problem"] for p in report["problems"]} == {
        "member must be a plain file, not a link or device"
    }
    assert sorted(tmp_path.parent.parent.glob("*")) == before


def test_a_shard_that_is_cut_off_gives_the_records_before_the_cut(birds, tmp_path, run):
    run("export", birds, tmp_path / "o", "--format", "webdataset")
    shard = tmp_path / "o/shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    status, out, _ = run("import", tmp_path / "c", tmp_path / "o", "--json")
    report = json.loads(out)
    assert status == 1
    assert 0 < report["done"] < 24
    (problem,) = report["problems"]
    assert problem["name"] == "shard-000000.tar"
    assert problem["problem"].startswith("shard must be a whole tar file: ")
    assert contents(tmp_path / "c").items() <= contents(birds).items()


def test_a_broken_header_within_a_shard_is_not_taken_for_its_end(birds, tmp_path, run):
    run("export", birds, tmp_path / "o", "--format", "webdataset")
    shard = tmp_path / "o/shard-000000.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        content[tar.getmembers()[12].offset] ^= 1  # the name no longer has its checksum
    shard.write_bytes(content)
    status, out, _ = run("import", tmp_path / "c", tmp_path / "o", "--json")
    report = json.loads(out)
    assert status == 1
    assert 0 < report["done"] < 5
    assert report["problems"][-1]["problem"] == "shard must be a whole tar file: bad checksum"


def pax_member(records, content=b""):
    """Return a tar whose one member has an extended header with the given content."""
    extended, member = tarfile.TarInfo("long"), tarfile.TarInfo("x.png")
    extended.type, extended.size, member.size = tarfile.XHDTYPE, len(records), len(content)
    blocks = [extended.tobuf(tarfile.USTAR_FORMAT), records, member.tobuf(tarfile.USTAR_FORMAT)]
    return b"".join(block + bytes(-len(block) % 512) for block in (*blocks, content))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (pax_member(b"%d path=%s\n" % (2**23 + 14, b"a" * 2**23)), "headers of at most 1048576"),
        (pax_member(b"")[:512] * 1500, "shard must be a whole tar file: "),
        (
            pax_member(
                b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", b"%0299d\n" % 99999 * 9000
            ),
            "headers of at most 1048576",
        ),
        (
            pax_member(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", b"1\n0\n99999999999\n"),
            "member must be a plain file",
        ),
        (pax_member(b"20 size=99999999999\n"), "unexpected end of data"),
        (pax_member(b"11 size=-5\n"), "image must decode"),
    ],
    ids=["long name", "nested headers", "sparse map", "sparse file", "large", "negative size"],
)
def test_no_header_of_a_shard_fills_the_memory(shard, message, tmp_path, run):
    (tmp_path / "s.tar").write_bytes(shard + bytes(1024))
    with bounded_memory(2**24):
        result = run("import", tmp_path / "c", tmp_path / "s.tar")
    assert_refused(result, message)
    assert not (tmp_path / "c").exists()


@contextmanager
def bounded_memory(most_bytes):
    """Fail if Python's objects grow by more than that at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path, run):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
    write_image(tmp_path / "p/a/good.png", 1)
    (tmp_path / "p/a/bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    webp = b"RIFF\x00\x01\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + b"\xff" * 6
    (tmp_path / "p/a/bomb.webp").write_bytes(webp)
    _, out, _ = run("import", tmp_path / "c", tmp_path / "p", "--json")
    report = json.loads(out)
    assert (report["done"], report["broken"]) == (1, 2)
    reasons = [problem["problem"] for problem in report["problems"]]
    assert "image sides must be 1 to 8192 px, got 16777216 x 16777216" in reasons
    assert any("50000" in reason or "exceeds limit" in reason for reason in reasons)


@pytest.mark.parametrize(
    "chunk",
    [
        b"VP8X" + bytes(8) + b"\xff" * 6,
        b"VP8L" + bytes(4) + b"\x2f" + b"\xff\xff\xff\x0f",
        b"VP8 " + bytes(4) + b"\x10\0\0\x9d\x01\x2a" + b"\xff\x3f" * 2,
    ],
)
def test_a_webp_of_too_many_pixels_is_refused_before_pillow_opens_it(chunk, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(CacheError, match="image sides must be 1 to 8192 px, got 16"):
        pixels_of(b"RIFF" + bytes(4) + b"WEBP" + chunk + bytes(8))


def test_a_broken_image_is_never_stored(tmp_path, run):
    write_image(tmp_path / "p/a/x.jpg", 1)
    write_image(tmp_path / "p/a/y.png", 1)
    good = (tmp_path / "p/a/y.png").read_bytes()
    (tmp_path / "p/a/cut.png").write_bytes(good[:-30])
    (tmp_path / "p/a/text.png").write_text("hello")
    (tmp_path / "p/a/empty.jpg").write_bytes(b"")
    status, out, _ = run("import", tmp_path / "c", tmp_path / "p", "--json")
    assert (status, json.loads(out)["done"], json.loads(out)["broken"]) == (1, 2, 3)
    assert run("verify", tmp_path / "c")[0] == 0


def test_an_import_without_a_readable_image_makes_no_cache(tmp_path, run):
    (tmp_path / "p/a").mkdir(parents=True)
    (tmp_path / "p/a/text.png").write_text("hello")
    assert_refused(run("import", tmp_path / "c", tmp_path / "p"), "a/text.png: image must decode")
    assert not (tmp_path / "c").exists()


def test_no_file_name_or_request_steers_the_terminal(tmp_path, run):
    write_image(tmp_path / "p/a/good.png", 1)
    (tmp_path / "p/a/\x1b[2Jbad.png").write_text("hello")
    _, out, err = run("import", tmp_path / "c", tmp_path / "p")
    assert "bad.png" in out
    assert "\x1b" not in out + err


def test_a_record_that_cannot_be_read_is_left_out_and_named(birds, tmp_path, run, monkeypatch):
    key = next(iter(contents(birds)))
    real = Store.inspect

    def inspect(store, wanted):
        if wanted == key:
            raise CorruptRecordError("record is corrupt: test")
        return real(store, wanted)

    monkeypatch.setattr(Store, "inspect", inspect)
    for arguments in (
        ("export", birds, tmp_path / "o"),
        ("merge", birds, "--into", tmp_path / "m"),
    ):
        status, out, _ = run(*arguments, "--json")
        assert (status, json.loads(out)["done"], json.loads(out)["broken"]) == (1, 23, 1)
        assert key.hex() in json.loads(out)["problems"][0]["name"]


def test_the_sample_request_has_every_type_of_field():
    types = {type(value) for value in bird(0).request.values()}
    assert types == {str, int, float, bool, type(None)}
