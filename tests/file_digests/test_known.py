"""Digests of files are kept, known again, mended, shared and verified."""

import io
import json
import os
import pickle
import threading
import time

import numpy as np
import PIL.Image
import pytest

from cache import Store, content_digest
from online_aug.file_digests import index as file_index
from online_aug.file_digests.index import read_index, read_whole
from online_aug.file_digests.known import HEADERS, KnownFiles, indexes, verify
from online_aug.file_digests.names import Names

FILES = Names.of(["a/0.png", "a/1.png", "b/0.png"])
LONG_AGO_S = 1_000_000_000


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    for name in FILES:
        write(root / name, f"content of {name}")
    return root


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "cache"
    Store(path).open().close()
    return path


@pytest.fixture
def reads(monkeypatch):
    """List the files that are read."""
    seen = []

    def noted(path):
        seen.append(path)
        return read_whole(path)

    monkeypatch.setattr("online_aug.file_digests.known.read_whole", noted)
    return seen


def write(path, text, changed_s=LONG_AGO_S):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (changed_s, changed_s))


def right(root, files=FILES):
    return [content_digest((root / name).read_bytes()) for name in files]


def digests(cache, root, files=FILES):
    return list(KnownFiles(cache, root, files).digests(range(len(files))))


def test_digests_are_those_of_the_content_and_the_next_run_reads_nothing(cache, root, reads):
    assert digests(cache, root) == right(root)
    assert len(reads) == 3
    assert digests(cache, root) == right(root)
    assert len(reads) == 3


def test_a_file_that_changed_and_one_that_is_new_are_read_alone(cache, root, reads):
    digests(cache, root)
    reads.clear()
    write(root / FILES[1], "something else", LONG_AGO_S + 1)
    write(root / "c/0.png", "one more")
    files = Names.of(["a/0.png", "a/1.png", "b/0.png", "c/0.png"])
    assert digests(cache, root, files) == right(root, files)
    assert sorted(reads) == [str(root / "a/1.png"), str(root / "c/0.png")]


@pytest.mark.parametrize("changed", ["size", "time", "inode"])
def test_a_file_is_known_again_by_size_time_and_inode(cache, root, changed):
    digests(cache, root)
    old = (root / FILES[0]).read_text()
    text = old + "x" if changed == "size" else old[::-1]
    if changed == "inode":
        write(root / "fresh", text)
        (root / "fresh").rename(root / FILES[0])
    else:
        write(root / FILES[0], text, LONG_AGO_S + (changed == "time"))
    assert digests(cache, root) == right(root)


def test_a_file_changed_in_the_tick_in_which_it_was_read_is_read_again(cache, root):
    now_s = time.time()
    write(root / FILES[0], "before", now_s)
    assert digests(cache, root)[0] == content_digest(b"before")
    with (root / FILES[0]).open("r+") as file:  # the same inode
        file.write("after!")
    os.utime(root / FILES[0], (now_s, now_s))
    assert digests(cache, root)[0] == content_digest(b"after!")


def test_files_of_the_future_are_read_again_as_when_the_clock_was_set_back(cache, root, reads):
    write(root / FILES[0], "later", time.time() + 86_400)
    for _ in range(2):
        assert digests(cache, root) == right(root)
    assert reads.count(str(root / FILES[0])) == 2
    assert reads.count(str(root / FILES[1])) == 1


@pytest.fixture
def changing(monkeypatch):
    """Return what changes a file between the reading of its state and of its content."""

    def begin(path, texts):
        rest, read = enumerate(texts), os.read

        def changed(descriptor, size):
            for number, text in rest:
                write(path, text, LONG_AGO_S + 1 + number)
                break
            return read(descriptor, size)

        monkeypatch.setattr(file_index.os, "read", changed)

    return begin


def test_a_file_that_changes_while_it_is_read_is_read_until_it_is_whole(root, changing):
    changing(root / FILES[0], ["now another"])
    found = read_whole(str(root / FILES[0]))
    assert found.digest.hex() == content_digest(b"now another")
    assert found.state[1] == (LONG_AGO_S + 1) * 10**9


def test_a_file_that_never_stands_still_is_refused(cache, root, changing):
    changing(root / FILES[0], ["again"] * 100)
    with pytest.raises(OSError, match="it changes while it is read") as error:
        read_whole(str(root / FILES[0]))
    assert error.value.filename == str(root / FILES[0])


def test_processes_that_start_at_once_read_each_file_once(cache, root, reads):
    known = [KnownFiles(cache, root, FILES) for _ in range(3)]
    threads = [threading.Thread(target=each.read, args=(np.arange(3),)) for each in known]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 3
    assert all(list(each.digests(range(3))) == right(root) for each in known)


def test_a_file_that_has_gone_is_an_error_that_names_it(cache, root):
    (root / FILES[2]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        digests(cache, root)
    assert error.value.filename == str(root / FILES[2])


def broken(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def of_another_version(content):
    line, _, rest = content.partition(b"\n")
    return json.dumps(json.loads(line) | {"version": 2}).encode() + b"\n" + rest


@pytest.mark.parametrize(
    "damage",
    [
        broken,
        of_another_version,
        lambda c: c[:50],
        lambda c: b"",
        lambda c: b"[]\n",
        lambda c: b"{",
    ],
)
def test_a_broken_index_and_one_of_another_version_are_written_anew(cache, root, reads, damage):
    digests(cache, root)
    (path,) = indexes(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert read_index(path) is None
    assert verify(path) is None
    reads.clear()
    for _ in range(2):
        assert digests(cache, root) == right(root)
    assert len(reads) == 3


def test_nothing_is_written_before_there_is_a_cache(tmp_path, root):
    known = KnownFiles(tmp_path / "cache", root, FILES)
    assert list(known.digests(range(3))) == right(root)
    assert not (tmp_path / "cache").exists()
    Store(tmp_path / "cache").open().close()
    known.save()
    assert verify(known.path).known == 3


def test_two_folders_of_one_content_and_two_splits_of_one_folder_keep_to_themselves(
    cache, root, reads
):
    other = root.with_name("copies")
    for name in FILES:
        write(other / name, f"content of {name}")
    for _ in range(2):
        assert digests(cache, root) == digests(cache, other) == right(root)
        assert digests(cache, root, FILES[:1]) + digests(cache, root, FILES[1:]) == right(root)
    assert len(reads) == 6
    assert len(indexes(cache)) == 2


def test_several_writers_lose_nothing(cache, root, reads):
    known = [KnownFiles(cache, root, FILES) for _ in range(3)]
    for each in known:
        each.unchecked(1)  # all have looked before any reads
    known[0].digests([0])
    known[1].note_checked(np.array([0, 1]), 2)
    known[1].save()
    threads = [threading.Thread(target=each.digests, args=(range(3),)) for each in known]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 3
    assert KnownFiles(cache, root, FILES).unchecked(2).tolist() == [2]
    assert digests(cache, root) == right(root)


def test_a_check_is_remembered_until_the_file_changes(cache, root):
    known = KnownFiles(cache, root, FILES)
    assert known.unchecked(1).tolist() == [0, 1, 2]
    known.note_checked(np.array([0, 2]), 1)
    known.save()
    write(root / FILES[2], "changed", LONG_AGO_S + 1)
    again = KnownFiles(cache, root, FILES)
    assert again.unchecked(1).tolist() == [1, 2]
    assert again.unchecked(2).tolist() == [0, 1, 2]


def test_an_index_that_cannot_be_written_is_only_logged(cache, root, monkeypatch, caplog):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("online_aug.file_digests.known.write_atomically", full)
    assert digests(cache, root) == right(root)
    assert "is not kept: [Errno 28] No space left on device" in caplog.text


def test_what_is_known_pickles_as_its_place(cache, root):
    known = KnownFiles(cache, root, FILES)
    known.digests(range(3))
    again = pickle.loads(pickle.dumps(known))
    assert again.digests([2]) == known.digests([2])


def test_verifying_finds_what_size_time_and_inode_do_not_tell_and_takes_it_out(cache, root):
    digests(cache, root)
    (path,) = indexes(cache)
    assert verify(path).wrong == ()
    with (root / FILES[1]).open("r+") as file:
        file.write("CONTENT")
    os.utime(root / FILES[1], (LONG_AGO_S, LONG_AGO_S))
    write(root / FILES[2], "changed", LONG_AGO_S + 1)
    found = verify(path)
    assert (found.known, found.changed, found.wrong) == (3, 1, (FILES[1],))
    assert digests(cache, root) == right(root)
    assert verify(path).wrong == ()


def test_the_names_of_files_may_be_any_bytes(cache, root):
    names = Names.of([os.fsdecode(b"a/\xff\n.png")])
    write(root / names[0], "strange")
    assert digests(cache, root, names) == digests(cache, root, names) == right(root, names)


def test_a_whole_image_has_passed_the_check_of_headers_when_it_was_read(cache, root):
    content = io.BytesIO()
    PIL.Image.new("RGB", (3, 2)).save(content, "PNG")
    for name, cut in zip(FILES, (None, -12, None), strict=True):
        (root / name).write_bytes(content.getvalue()[:cut])
        os.utime(root / name, (LONG_AGO_S, LONG_AGO_S))
    (root / FILES[2]).write_bytes(b"no image")
    assert digests(cache, root) == right(root)
    assert KnownFiles(cache, root, FILES).unchecked(HEADERS).tolist() == [1, 2]


def test_files_that_cannot_be_read_are_told_and_the_others_are_read(cache, root):
    (root / FILES[1]).unlink()
    (root / FILES[1]).mkdir()
    errors = KnownFiles(cache, root, FILES).read(np.arange(3))
    assert list(errors) == [1]
    assert "it is a folder" in str(errors[1])
    assert digests(cache, root, FILES[::2]) == right(root, FILES[::2])


def test_a_pipe_is_refused_and_not_waited_for(cache, root):
    (root / FILES[1]).unlink()
    os.mkfifo(root / FILES[1])
    with pytest.raises(OSError, match="it is a pipe"):
        digests(cache, root)
