"""Hostile documents are one line in bounded time, whatever they nest, repeat or spell out."""

import os
import socket
from dataclasses import dataclass

import pytest

from online_aug.documents import (
    MAX_DEPTH,
    DocumentError,
    open_regular,
    parse_json,
    parse_yaml,
    read_object,
    read_text,
)
from online_aug.errors import UserError
from online_aug.files import from_json

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
"""Ten aliases that stand for each other nine times: two thousand million values."""
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)
)

HOSTILE_YAML = {
    "laughs": (LAUGHS, "stands for more than 50000 values (line 6,"),
    "merges": (MERGES, "stands for more than 50000 values"),
    "long text by aliases": (
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 100)}]",
        "stands for more than",
    ),
    "aliases in depth": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200)),
        "lie in one another",
    ),
    "a list in itself": ("a: &a [*a]", "an alias must not stand for what it lies in (line 1"),
    "a mapping in itself": ("a: &a {b: *a}", "an alias must not stand for what it lies in"),
    "deep lists": ("[" * 10_000, "lie in one another"),
    "deep blocks": ("- " * 10_000 + "x", "lie in one another"),
    "deep mappings": ("{a: " * 10_000, "lie in one another"),
    "deep keys": ("? " * 10_000, "lie in one another"),
    "digits": ("9" * 100_000, "a number must have at most 100 letters"),
    "hexadecimal digits": ("0x" + "f" * 100_000, "a number must have at most 100 letters"),
    "digits to the base of 60": ("1" + ":59" * 30_000, "a number must have at most 100 letters"),
    "a long tag": ("!" * 10_000, "could not determine a constructor for the tag"),
    "a null byte": ("\0", "special characters are not allowed"),
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_one_line(kind):
    text, reason = HOSTILE_YAML[kind]
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_aliases_and_merges_of_ordinary_size_are_read():
    text = "base: &b {lr: 0.1, steps: 3}\nfast: {<<: *b, lr: 1}\nsame: *b\n"
    assert parse_yaml(text)["fast"] == {"lr": 1, "steps": 3}
    assert parse_yaml(text)["same"] == {"lr": 0.1, "steps": 3}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "lie in one another"),
        ('{"a":' * 100_000, "lie in one another"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "lie in one another"),
        ("9" * 1_000_000, "a number of too many digits"),
        ("", "it is not JSON: "),
        ("{'a': 1}", "it is not JSON: "),
    ],
)
def test_hostile_json_is_one_line(text, reason):
    with pytest.raises(DocumentError) as caught:
        parse_json(text)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_values_as_deep_as_allowed_are_read():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(text) == parse_yaml(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": 1}'.encode("utf-16"), "it is not text in UTF-8 (byte 0)"),
        (b"\x80\x81", "it is not text in UTF-8"),
        (b"[1]", "it must hold a JSON object, got a list"),
        (b"null", "it must hold a JSON object, got null"),
        (b'"a"', "it must hold a JSON object, got text"),
        (b"{" + b" " * 2000 + b"}", "it is larger than 1000 bytes"),
    ],
)
def test_a_file_that_holds_no_object_says_why(tmp_path, content, reason):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        read_object(path, limit=1000)
    assert reason in str(caught.value)


@pytest.fixture
def strange(tmp_path):
    """Paths that are no regular files, by kind."""
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    yield {
        "fifo": (tmp_path / "fifo", "it is a pipe, socket or device, not a regular file"),
        "socket": (tmp_path / "socket", "No such device or address"),
        "folder": (tmp_path, "it is a folder, not a regular file"),
        "device": ("/dev/zero", "it is a pipe, socket or device, not a regular file"),
        "link to nothing": (tmp_path / "nowhere", "No such file or directory"),
        "link to itself": (tmp_path / "round", "Too many levels of symbolic links"),
        "null byte": ("a\0b", "embedded null byte"),
    }
    listener.close()


def test_only_regular_files_are_read(strange, tmp_path):
    for path, reason in strange.values():
        with pytest.raises(DocumentError) as caught:
            read_text(type(tmp_path)(path))
        assert str(caught.value) == reason


def test_a_link_to_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_text("here")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_text(tmp_path / "link") == "here"
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"here"


@dataclass(frozen=True)
class Sample:
    name: str
    share: float
    parts: dict[str, float]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"name": 1, "share": 0, "parts": {}}', "name does not"),
        ('{"name": "a", "share": "0", "parts": {}}', "share does not"),
        ('{"name": "a", "share": 0, "parts": []}', "parts does not"),
        ('{"name": "a", "share": 0, "parts": {"x": "y"}}', "parts.x does not"),
        ('{"name": "a", "share": 0}', "differs in: parts"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
    ],
)
def test_a_record_with_a_field_of_another_type_names_the_field(text, field):
    with pytest.raises(UserError) as caught:
        from_json(Sample, text, "here")
    assert str(caught.value).startswith("here must ")
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_is_read_with_nan_for_null():
    sample = from_json(Sample, '{"name": "a", "share": null, "parts": {"x": 1}}', "here")
    assert sample.share != sample.share
    assert sample.parts == {"x": 1.0}
