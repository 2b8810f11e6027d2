"""How a loader is used in anybody's loop: epochs that go on, one loop at a time, a clean end."""

import gc
import threading
from itertools import islice

import pytest
import torch
from mixing_samples import IMAGES, Setup, put, with_noise
from torch.utils.data import DataLoader, Dataset

from online_aug.errors import UserError
from online_aug.loader.slots import Kind
from online_aug.producer.messages import Status


class Process:
    """Stands for the supervisor: it notes its calls, which in the real one act on a child."""

    restarts = 0
    status = Status(state="generating", generated=7, rejected=2, images_per_s=3.5)

    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def check(self):
        pass

    def served(self, fresh):
        pass

    def stop(self):
        self.calls.append("stop")


@pytest.fixture
def setup(store):
    put(store, range(0, 20))
    return Setup(store, transform=with_noise)


def content(batches):
    return [(images.tolist(), labels.tolist()) for images, labels in batches]


def epoch_of(setup, epoch):
    loader = setup.loader()
    loader.set_epoch(epoch)
    return content(loader)


def test_an_epoch_that_nobody_set_goes_on_to_the_next(setup):
    loader = setup.loader()
    assert [content(loader) for _ in range(3)] == [epoch_of(setup, epoch) for epoch in range(3)]


def test_a_loop_that_ends_early_goes_on_to_the_next_epoch_too(setup):
    loader = setup.loader()
    for _ in range(2):
        next(iter(loader))
    assert loader.next_epoch == 2
    assert content(loader) == epoch_of(setup, 2)


def test_the_epoch_that_is_set_is_served_from_its_first_batch_even_again(setup):
    loader = setup.loader()
    for epoch in (1, 1, 0):
        loader.set_epoch(epoch)
        assert content(loader) == epoch_of(setup, epoch)


@pytest.mark.parametrize("sets_epoch", [False, True])
@pytest.mark.parametrize("after", [2, 6])
def test_a_resumed_loop_goes_on_whoever_sets_the_epoch(setup, sets_epoch, after):
    first = setup.loader()
    begun = content(islice(first, after))
    state = first.state_dict()
    again = setup.loader()
    again.load_state_dict(state)
    if sets_epoch:
        again.set_epoch(0)
    rest = content(again)
    if after == 6 and not sets_epoch:  # the epoch was whole
        assert rest == epoch_of(setup, 1)
    else:
        assert begun + rest == epoch_of(setup, 0)
        assert content(again) == epoch_of(setup, 1)


def test_a_loader_is_of_no_use_after_close(setup):
    loader = setup.loader()
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    for use in (lambda: next(batches), lambda: iter(loader), loader.start):
        with pytest.raises(UserError, match="^a loader must not be used after close"):
            use()


def test_two_loops_at_once_are_refused(setup):
    loader = setup.loader()
    older = iter(loader)
    next(older)
    next(iter(loader))
    with pytest.raises(UserError, match="^a loader must serve one loop and one thread at a time"):
        next(older)


def test_two_threads_at_once_are_refused(setup):
    inside, go_on = threading.Event(), threading.Event()

    def slow(image, rng):
        inside.set()
        assert go_on.wait(30)
        return image

    setup.transform = slow
    batches = iter(setup.loader())
    thread = threading.Thread(target=lambda: next(batches))
    thread.start()
    assert inside.wait(30)
    try:
        with pytest.raises(UserError, match="one loop and one thread at a time"):
            next(batches)
    finally:
        go_on.set()
        thread.join()


def test_a_forgotten_loader_ends_its_process_and_removes_its_folder(setup, tmp_path):
    process = Process()
    loader = setup.loader(process=process)
    loader.scratch = tmp_path / "scratch"
    loader.scratch.mkdir()
    next(iter(loader))
    del loader
    gc.collect()
    assert process.calls == ["start", "stop"]
    assert not (tmp_path / "scratch").exists()


def test_after_an_exception_the_folder_with_the_log_stays(setup, tmp_path):
    process = Process()
    with pytest.raises(ZeroDivisionError), setup.loader(process=process) as loader:  # noqa: PT012
        loader.scratch = tmp_path
        next(iter(loader))
        raise ZeroDivisionError
    assert process.calls == ["start", "stop"]
    assert tmp_path.exists()


def test_the_figures_are_those_of_the_run_so_far(setup):
    loader = setup.loader(process=Process())
    assert loader.stats().images_per_s == 0
    list(loader)
    stats = loader.stats()
    served = stats.served_real + stats.served_fresh + stats.served_cached + stats.starved
    assert served == 2 * IMAGES
    assert stats.served_cached > 0
    assert (stats.generated, stats.rejected, stats.generated_per_s) == (7, 2, 3.5)
    assert stats.images_per_s > 0


class Own(Dataset):
    """A data set of somebody's own, which has more to say of an image."""

    def __init__(self, served):
        self.served = served

    def __getitem__(self, slot):
        image, label = self.served.read(slot)
        return torch.from_numpy(image), torch.from_numpy(label), slot.index


@pytest.mark.parametrize("workers", [0, 1])
def test_index_mode_gives_what_a_data_set_needs_to_serve_a_slot(setup, workers):
    setup.composed_share = 0.3
    loader = setup.loader()
    loader.mode = "index"
    own = DataLoader(Own(loader.dataset), batch_sampler=loader, num_workers=workers)
    assert len(own) == 6
    batches = list(own)
    setup.transform = lambda image, rng: image
    for (images, labels, indices), same in zip(batches, setup.loader(), strict=True):
        assert images.permute(0, 3, 1, 2).tolist() == same.images.tolist()
        assert labels.tolist() == same.labels.tolist()
        assert indices.tolist() == same.indices.tolist()
    assert loader.stats().served_cached > 0


def test_slots_say_how_they_are_filled(setup):
    loader = setup.loader()
    loader.mode = "index"
    kinds = {slot.kind for slots in loader for slot in slots}
    assert {Kind.REAL, Kind.CACHED} <= kinds


class Heard:
    """Stands for the feedback to a generation process: it keeps what it is told."""

    def report(self, losses, labels):
        self.losses, self.labels = losses, labels


def test_losses_go_with_the_soft_labels_of_the_latest_batches(setup):
    loader = setup.loader()
    loader.feedback = Heard()
    first, second = islice(loader, 2)
    loader.report_losses(second.indices, torch.ones(8, requires_grad=True))
    assert torch.equal(loader.feedback.labels, second.labels)
    assert not loader.feedback.losses.requires_grad
    some = [int(first.indices[3]), int(second.indices[1])]
    loader.report_losses(some, [0.5, 2.0])
    assert torch.equal(loader.feedback.labels, torch.stack([first.labels[3], second.labels[1]]))
    assert loader.feedback.losses.tolist() == [0.5, 2.0]
