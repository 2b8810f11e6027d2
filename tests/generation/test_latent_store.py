"""Latents that do not fit into memory: on disk, to the last bit, and gone with their process."""

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online_aug.generation import vae
from online_aug.generation.vae import LatentStore, ScratchFile

ONE = 8 * 4 * 4 * 4
"""Bytes of one tensor here."""


def tensor_of(number):
    return torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(number))


def key_of(number):
    return number.to_bytes(16)


def fill(store, numbers):
    for number in numbers:
        store.put(key_of(number), tensor_of(number))


def kept(store, numbers):
    """Which of these are there, as they were put."""
    found = {number: store.get(key_of(number)) for number in numbers}
    there = {number: tensor for number, tensor in found.items() if tensor is not None}
    for number, tensor in there.items():
        assert torch.equal(tensor, tensor_of(number))
    return set(there)


@pytest.fixture
def scratch(tmp_path):
    file = ScratchFile(tmp_path, 5 * ONE)
    yield file
    file.close()


@pytest.fixture
def store(scratch):
    made = LatentStore(memory_bytes=2 * ONE)
    made.spill_to(scratch)
    return made


def test_what_memory_has_no_room_for_is_read_from_disk_as_it_was(store, scratch):
    fill(store, range(6))
    assert len(scratch) == 4
    assert kept(store, range(6)) == set(range(6))


def test_without_a_file_the_first_is_dropped():
    store = LatentStore(memory_bytes=2 * ONE)
    fill(store, range(3))
    assert kept(store, range(3)) == {1, 2}


def test_what_is_over_the_limit_of_the_disk_is_dropped_and_the_rest_stays(store, scratch, tmp_path):
    fill(store, range(9))
    assert len(scratch) == 5
    assert kept(store, range(9)) == kept(store, range(9)) == {0, 1, 2, 3, 4, 7, 8}


@given(
    asked=st.lists(st.integers(0, 11), max_size=60),
    memory=st.integers(1, 4),
    disk=st.integers(0, 5),
)
def test_whatever_the_order_what_is_found_is_what_was_put(tmp_path_factory, asked, memory, disk):
    file = ScratchFile(tmp_path_factory.getbasetemp(), disk * ONE)
    store = LatentStore(memory_bytes=memory * ONE)
    store.spill_to(file)
    for number in asked:
        if not kept(store, [number]):
            fill(store, [number])
        assert kept(store, [number]) == {number}
    assert len(file) <= disk
    file.close()


def test_the_file_has_no_name_and_takes_no_more_than_its_limit(store, scratch, tmp_path):
    fill(store, range(9))
    assert list(tmp_path.iterdir()) == []
    assert scratch.size_bytes == 5 * ONE


def test_nothing_is_written_before_memory_is_full(store, scratch):
    fill(store, range(2))
    assert scratch.file is None


def test_two_processes_beside_one_cache_do_not_meet(tmp_path):
    files = [ScratchFile(tmp_path, 5 * ONE) for _ in range(2)]
    for file, shift in zip(files, (0, 100), strict=True):
        for number in range(3):
            file.put(key_of(number), tensor_of(number + shift))
    for file, shift in zip(files, (0, 100), strict=True):
        for number in range(3):
            assert torch.equal(file.get(key_of(number)), tensor_of(number + shift))
        file.close()


def test_a_killed_process_leaves_nothing(tmp_path):
    program = f"""
        import os, signal, torch
        from pathlib import Path
        from online_aug.generation.latent_store import ScratchFile
        file = ScratchFile(Path({str(tmp_path)!r}), 2**20)
        file.put(b"key", torch.zeros(4, 8, 8))
        assert file.get(b"key") is not None
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def given_up(scratch, store, caplog):
    """What was said when the file was given up; its room is free again, memory goes on."""
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("latents are not kept on disk from now on (")
    assert "\n" not in line
    assert scratch.file is None
    assert len(scratch) == 0
    fill(store, (20, 21, 22))
    assert kept(store, (20, 21, 22)) == {21, 22}
    assert len(caplog.records) == 1
    return line


@pytest.fixture
def caplog(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def failing(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_said_once_and_gone_on_without(
    store, scratch, caplog, monkeypatch, number
):
    fill(store, range(4))
    monkeypatch.setattr(vae.os, "pwrite", failing(number))
    fill(store, (4,))
    assert os.strerror(number) in given_up(scratch, store, caplog)


def test_a_disk_that_cannot_be_read_is_said_once_and_gone_on_without(
    store, scratch, caplog, monkeypatch
):
    fill(store, range(4))
    monkeypatch.setattr(vae.os, "preadv", failing(errno.EIO))
    assert kept(store, (0,)) == set()
    given_up(scratch, store, caplog)


def test_a_file_that_has_become_shorter_is_not_read(store, scratch, caplog):
    fill(store, range(5))
    os.ftruncate(scratch.file.fileno(), ONE + 5)
    assert kept(store, (1,)) == set()
    assert "the file ends early" in given_up(scratch, store, caplog)


def test_the_last_of_a_disk_is_left_to_others(store, scratch, caplog, monkeypatch):
    fill(store, range(4))
    monkeypatch.setattr(vae, "LEFT_FREE_BYTES", 2**60)
    fill(store, (4,))
    assert "the disk is nearly full" in given_up(scratch, store, caplog)


def test_a_folder_that_is_not_there_is_said_once_and_gone_on_without(tmp_path, caplog):
    file, store = ScratchFile(tmp_path / "none", 5 * ONE), LatentStore(memory_bytes=2 * ONE)
    store.spill_to(file)
    fill(store, range(3))
    assert "No such file" in given_up(file, store, caplog)


def test_parts_of_a_write_and_a_read_are_gone_on_with(store, scratch, monkeypatch):
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(vae.os, "pwrite", lambda file, content, at: pwrite(file, content[:100], at))
    monkeypatch.setattr(vae.os, "preadv", lambda file, into, at: preadv(file, [into[0][:70]], at))
    fill(store, range(6))
    assert kept(store, range(6)) == set(range(6))
