"""Batches in the hands of other libraries: they unpack, move, pin and take them apart."""

import copy
import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, send_to_device
from mixing_samples import Setup, put
from torch.utils.data._utils.pin_memory import pin_memory

from online_aug.loader.batch import Batch
from online_aug.loader.loader import OnlineAugLoader
from online_aug.request import Counts


@pytest.fixture
def batch():
    return Batch.of(
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        torch.full((4, 2), 0.5),
        served=Counts(real=4),
        indices=torch.arange(4),
    )


def is_whole(moved, device):
    assert isinstance(moved, Batch)
    assert [tensor.device.type for tensor in moved] == [device, device]
    return moved.served == Counts(real=4) and moved.indices.tolist() == [0, 1, 2, 3]


def test_a_batch_unpacks_into_images_and_labels(store):
    put(store, range(4))
    for images, labels in Setup(store).loader():
        assert images.dtype == torch.uint8
        assert labels.shape == (8, 4)


def test_a_batch_knows_the_training_image_at_each_slot(store):
    served = [batch.indices for batch in Setup(store, probability=0).loader()]
    assert sorted(torch.cat(served).tolist()) == sorted(list(range(24)) * 2)


def test_moving_keeps_the_counts(batch):
    assert is_whole(batch.to("meta"), "meta")
    assert batch.to("cpu", torch.float32).images.dtype == torch.float32
    assert batch.to(torch.float64).labels.dtype == torch.float32


def test_accelerate_moves_a_batch_and_finds_its_size(batch):
    assert find_batch_size(batch) == 4
    assert is_whole(send_to_device(batch, torch.device("meta"), non_blocking=True), "meta")


def test_lightning_moves_a_batch_and_finds_its_size(batch):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.fabric.utilities import move_data_to_device
    from lightning.pytorch.utilities.data import extract_batch_size

    assert lightning
    assert is_whole(move_data_to_device(batch, torch.device("meta")), "meta")
    assert extract_batch_size(batch) == 4


def test_a_library_that_makes_a_new_one_of_the_tensors_gets_a_batch(batch):
    again = type(batch)(tensor + 1 for tensor in batch)
    assert isinstance(again, Batch)
    assert again.images.unique().tolist() == [1]
    assert again.served == Counts()


def test_pinning_finds_the_tensors(batch, monkeypatch):
    # Page-locking itself needs a GPU; checked is that PyTorch's walk over a batch finds them.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    assert is_whole(batch.pin_memory(), "cpu")
    pin_memory(batch)
    assert [tensor.shape for tensor in pinned] == [(4, 3, 8, 8), (4, 2)] * 2


def test_a_batch_can_be_copied_and_pickled(batch):
    assert is_whole(copy.deepcopy(batch), "cpu")
    assert is_whole(pickle.loads(pickle.dumps(batch)), "cpu")  # noqa: S301


def test_accelerate_serves_the_loader_itself_and_saves_its_state(store, tmp_path):
    put(store, range(4))
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(Setup(store).loader())
    assert isinstance(prepared, OnlineAugLoader)
    next(iter(prepared))
    accelerator.save_state(str(tmp_path))
    again = Accelerator(cpu=True)
    resumed = again.prepare(Setup(store).loader())
    again.load_state(str(tmp_path))
    assert resumed.state_dict() == prepared.state_dict()
