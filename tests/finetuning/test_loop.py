"""Checkpoints, and a fine-tuning that goes on from one as if it had not stopped."""

import errno
import logging
import os

import pytest
import torch
from finetuning_samples import config_with, run

from online_aug.errors import UserError
from online_aug.finetuning.loop import (
    BEGINNING,
    CHECKPOINTS,
    KEPT,
    Checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

STATE = {"learned": [torch.arange(6.0)], "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}


STAGED = config_with(mode="staged", token_steps=2, steps=3, checkpoint_steps=1, class_balance=1.0)


class Stopped(Exception):
    """Ends a fine-tuning between two steps."""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / CHECKPOINTS


@pytest.fixture
def two(folder):
    """The files of two checkpoints, the older first."""
    for step in (1, 2):
        save_checkpoint(folder, Checkpoint(step, STATE))
    return sorted(folder.iterdir())


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_checkpoint_is_read_as_it_was_written(folder):
    save_checkpoint(folder, Checkpoint(7, STATE))
    found = newest_checkpoint(folder)
    assert found.step == 7
    torch.testing.assert_close(dict(found.state), STATE, rtol=0, atol=0)


def test_without_a_checkpoint_it_starts_from_the_beginning(folder):
    assert newest_checkpoint(folder) == BEGINNING


def test_the_newest_are_kept_and_half_written_ones_are_deleted(folder):
    folder.mkdir()
    (folder / ".step_00000001.checkpoint.99.tmp").write_bytes(b"half")
    for step in range(1, KEPT + 3):
        save_checkpoint(folder, Checkpoint(step, STATE))
    assert len(list(folder.iterdir())) == KEPT
    assert newest_checkpoint(folder).step == KEPT + 2


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_flipped_bit_is_a_warning_and_the_one_before_is_taken(two, folder, place, caplog):
    content = bytearray(two[-1].read_bytes())
    content[place] ^= 1
    two[-1].write_bytes(content)
    assert newest_checkpoint(folder).step == 1
    (line,) = warnings_in(caplog)
    assert line == f"fine-tuning does not go on from {two[-1]}: it is damaged"


@pytest.mark.parametrize("size", [0, 5, 100])
def test_if_all_are_cut_off_it_starts_from_the_beginning(two, folder, size, caplog):
    for path in two:
        path.write_bytes(path.read_bytes()[:size])
    assert newest_checkpoint(folder) == BEGINNING
    assert len(warnings_in(caplog)) == 2


def test_a_full_disk_is_one_clear_line_and_leaves_the_one_before(folder, monkeypatch):
    save_checkpoint(folder, Checkpoint(1, STATE))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match="^finetune.path must have room for .* No space left"
    ) as caught:
        save_checkpoint(folder, Checkpoint(2, STATE))
    assert "\n" not in str(caught.value)
    assert newest_checkpoint(folder).step == 1


def test_a_checkpoint_of_another_version_is_passed_over(folder, monkeypatch, caplog):
    save_checkpoint(folder, Checkpoint(1, STATE))
    monkeypatch.setattr("online_aug.finetuning.loop._FORMAT", 2)
    assert newest_checkpoint(folder) == BEGINNING
    assert "it is of another version (1, 2 here)" in warnings_in(caplog)[0]


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """Files and losses by step of a fine-tuning of two stages that nothing interrupted."""
    folder, losses = tmp_path_factory.mktemp("whole") / "result", {}
    run(tiny_model, folder, STAGED, report=losses.__setitem__)
    return contents(folder), losses


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("last", [1, 2, 4], ids=["first stage", "between the stages", "last stage"])
def test_stopped_in_any_stage_it_ends_with_the_same_bits(tiny_model, whole, tmp_path, last):
    expected, losses = whole

    def stop(step, loss):
        if step == last:
            raise Stopped

    with pytest.raises(Stopped):
        run(tiny_model, tmp_path / "result", STAGED, report=stop)
    saved = newest_checkpoint(tmp_path / "result" / CHECKPOINTS)
    assert saved.step == last
    rest = {}
    run(tiny_model, tmp_path / "result", STAGED, report=rest.__setitem__, checkpoint=saved)
    assert rest == {step: losses[step] for step in range(last + 1, 6)}
    assert contents(tmp_path / "result") == expected


@pytest.mark.slow
def test_the_scale_of_the_loss_is_restored_too(tiny_model, tmp_path, monkeypatch):
    scales = []

    class Growing(torch.amp.GradScaler):
        """Doubles the scale after every step."""

        def __init__(self, device, enabled):
            super().__init__(device, growth_interval=1, enabled=enabled)

        def update(self):
            super().update()
            scales.append(self.get_scale())

    monkeypatch.setattr(torch.amp, "GradScaler", Growing)
    half = config_with(steps=3, dtype="float16", checkpoint_steps=2)
    run(tiny_model, tmp_path / "whole", half)
    saved = newest_checkpoint(tmp_path / "whole" / CHECKPOINTS)
    run(tiny_model, tmp_path / "rest", half, checkpoint=saved)
    assert len(scales) == 4
    assert scales[3] == scales[2] > scales[0]
