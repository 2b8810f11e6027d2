"""The index of shards is kept, known again, mended, shared, and never serves a wrong image."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from shard_samples import LONG_AGO_S, age, members_of, noise, pairs_of, write_tar

from cache import Store
from online_aug.data.settings import DataConfig
from online_aug.data.shards import index as shard_index
from online_aug.data.shards.index import INDEX_FILE, read_shard
from online_aug.data.sources import load_splits
from online_aug.errors import UserError

LABELS = [0, 1] * 4


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "shards"
    for number in range(3):
        write(folder / f"{number}.tar", number)
    return folder


@pytest.fixture
def reads(monkeypatch):
    """List the shards that are read."""
    seen = []

    def noted(folder, file):
        seen.append(file.name)
        return read_shard(folder, file)

    monkeypatch.setattr(shard_index, "read_shard", noted)
    return seen


def write(path, seed, changed_s=LONG_AGO_S):
    write_tar(path, members_of(noise(len(LABELS), seed), LABELS))
    os.utime(path, (changed_s, changed_s))


def images_of(folder, cache=None, **settings):
    return load_splits(DataConfig(source=str(folder), **settings), cache).train.parent


def expected(*seeds):
    images = [pixels for seed in seeds for pixels in noise(len(LABELS), seed)]
    return [(p.tobytes(), k) for p, k in zip(images, LABELS * len(seeds), strict=True)]


def test_the_second_start_reads_no_shard(root, reads):
    assert pairs_of(images_of(root)) == expected(0, 1, 2)
    assert sorted(reads) == ["0.tar", "1.tar", "2.tar"]
    reads.clear()
    assert pairs_of(images_of(root)) == expected(0, 1, 2)
    assert reads == []


def test_a_shard_that_changed_and_one_that_is_new_are_read_alone(root, reads):
    images_of(root)
    reads.clear()
    write(root / "1.tar", 7, LONG_AGO_S + 1)
    write(root / "3.tar", 8)
    assert pairs_of(images_of(root)) == expected(0, 7, 2, 8)
    assert sorted(reads) == ["1.tar", "3.tar"]


@pytest.mark.parametrize("changed", ["time", "inode"])
def test_a_shard_of_the_same_size_is_known_by_time_and_inode(root, changed):
    images_of(root)
    size = (root / "1.tar").stat().st_size
    if changed == "inode":
        write(root / "fresh", 9)
        (root / "fresh").rename(root / "1.tar")
    else:
        write(root / "1.tar", 9, LONG_AGO_S + 1)
    assert abs((root / "1.tar").stat().st_size - size) <= 10_240
    assert pairs_of(images_of(root)) == expected(0, 9, 2)


def test_a_shard_changed_shortly_before_it_was_read_is_read_again(root, reads):
    os.utime(root / "1.tar")
    for _ in range(2):
        images_of(root)
    assert reads.count("1.tar") == 2
    assert reads.count("0.tar") == 1


@pytest.mark.parametrize("spoil", ["a byte", "the version", "cut", "empty", "no object"])
def test_a_broken_index_is_made_anew_with_one_line(root, reads, caplog, spoil):
    images_of(root)
    path = root / INDEX_FILE
    content = path.read_bytes()
    head, _, rest = content.partition(b"\n")
    path.write_bytes(
        {
            "a byte": content[:-1] + bytes([content[-1] ^ 1]),
            "the version": json.dumps(json.loads(head) | {"version": 0}).encode() + b"\n" + rest,
            "cut": content[:-100],
            "empty": b"",
            "no object": b"[]\n" + rest,
        }[spoil]
    )
    reads.clear()
    caplog.clear()
    assert pairs_of(images_of(root)) == expected(0, 1, 2)
    assert len(reads) == 3
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"{path} is broken or of another version: it is made anew"]
    reads.clear()
    images_of(root)
    assert reads == []


def test_an_index_lies_beside_the_cache_if_the_folder_cannot_be_written(
    root, tmp_path, reads, monkeypatch
):
    cache = tmp_path / "cache"
    Store(cache).open().close()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p != root and access(p, mode))
    for _ in range(2):
        assert pairs_of(images_of(root, cache)) == expected(0, 1, 2)
    assert len(reads) == 3
    assert not (root / INDEX_FILE).exists()
    assert len(list((cache / "digests").glob("*.shards"))) == 1


def test_without_a_place_nothing_is_kept_until_there_is_a_cache(root, tmp_path, reads, monkeypatch):
    cache = tmp_path / "cache"
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p != root and access(p, mode))
    splits = load_splits(DataConfig(source=str(root)), cache)
    assert not cache.exists()
    Store(cache).open().close()
    splits.save_known()
    reads.clear()
    images_of(root, cache)
    assert reads == []


def test_reading_some_shards_of_a_folder_keeps_what_is_known_of_the_others(root, reads):
    images_of(root)
    write(root / "3.tar", 8)
    images_of(root / "3.tar")
    reads.clear()
    images_of(root)
    assert reads == []


def test_another_key_reads_the_shards_again(root, reads):
    images_of(root)
    with pytest.raises(UserError, match="must hold labelled images"):
        images_of(root, image_key="jpg")
    assert len(reads) > 3
    assert pairs_of(images_of(root)) == expected(0, 1, 2)


def test_processes_that_want_the_same_shards_read_them_once(root, reads):
    found = []
    threads = [threading.Thread(target=lambda: found.append(images_of(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pairs_of(images) for images in found] == [expected(0, 1, 2)] * 4
    assert sorted(reads) == ["0.tar", "1.tar", "2.tar"]


def test_a_shard_that_is_replaced_while_it_is_used_still_gives_the_right_image(root):
    images = images_of(root)
    images.load(0)
    write(root / "fresh", 9)
    (root / "fresh").rename(root / "0.tar")
    assert pairs_of(images)[:8] == expected(0)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_shard_that_is_overwritten_while_it_is_used_is_refused(root, is_open):
    images = images_of(root)
    if is_open:
        images.load(0)
    with (root / "0.tar").open("r+b") as file:
        file.write(bytes(4000))
    with pytest.raises(UserError, match=r"0\.tar must stay as it was .* has changed: start again"):
        images.load(1)


def test_a_shard_that_has_gone_is_refused(root):
    images = images_of(root)
    (root / "1.tar").unlink()
    with pytest.raises(UserError, match=r"1\.tar cannot be read: No such file"):
        images.load(9)


def test_a_shard_that_never_stands_still_is_refused(root, monkeypatch):
    def changing(path, file):
        age(path)
        os.utime(path)
        return read(path, file)

    read = shard_index.READERS[".tar"]
    monkeypatch.setitem(shard_index.READERS, ".tar", changing)
    with pytest.raises(UserError, match="cannot be read: it changes while it is read"):
        images_of(root)


def test_a_set_is_pickled_with_its_places_and_opens_the_shards_itself(root):
    images = images_of(root)
    images.load(0)
    assert pairs_of(pickle.loads(pickle.dumps(images))) == expected(0, 1, 2)


def test_a_forked_process_and_threads_read_right_at_once(root):
    images = images_of(root)
    images.load(0)
    child = os.fork()
    if not child:
        os._exit(0 if pairs_of(images) == expected(0, 1, 2) else 1)
    found = []
    threads = [threading.Thread(target=lambda: found.append(pairs_of(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected(0, 1, 2)] * 4
    assert os.waitpid(child, 0)[1] == 0


def test_files_are_closed_with_the_set_and_few_are_open_at_once(root, monkeypatch):
    from online_aug.data.shards import open_shard

    monkeypatch.setattr(open_shard, "_MOST_OPEN", 2)
    images = images_of(root)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert pairs_of(images) == expected(0, 1, 2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    del images
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_checks_of_whole_images_are_remembered(root, monkeypatch):
    from online_aug.data import sources

    images_of(root, on_bad_image="skip")
    monkeypatch.setitem(sources._CHECKS, 2, None)  # would fail if it were called
    assert len(images_of(root, on_bad_image="skip")) == 24


def test_images_are_stored_in_few_bytes(root):
    images = images_of(root)
    assert images.images.itemsize == 37
    assert np.shares_memory(images.images, images.shards[0].content.images)
