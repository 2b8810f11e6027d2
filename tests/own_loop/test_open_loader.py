"""The loader of somebody's own training loop, with a real generation process."""

import logging
import os
import random
import re
import signal
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experiment_samples import make_config
from own_loops import generators
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import Compose, RandomCrop, ToTensor

from online_aug import OnlineAugLoader, cores, open_loader
from online_aug.classifier.model import build_classifier
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "YOUR_OWN_LOOP.md"
OVERRIDES = {"finetune": {"enabled": False}}


@pytest.fixture
def recipe(tmp_path, tiny_model):
    """A YAML file with a tiny random model that nothing has to be prepared for."""
    path = tmp_path / "tiny.yaml"
    path.write_text(resolved_yaml(make_config(tmp_path, tiny_model, **OVERRIDES)))
    return path


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch):
    """Folders for temporary files are made here; its path is short, as sockets of workers need."""
    with TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


@pytest.mark.slow
def test_the_loop_of_the_documentation_trains(recipe, tmp_path, monkeypatch, temporary_folder):
    loop, *_ = re.findall(r"```python\n(.*?open_loader.*?)```", PAGE.read_text(), re.S)
    assert len(loop.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    found = {}
    ours = loop.replace('"quickstart"', repr(str(recipe))).replace(
        "num_classes=12", "num_classes=2"
    )
    exec(ours, found)
    assert isinstance(found["loader"], OnlineAugLoader)
    assert torch.isfinite(found["loss"])
    assert found["images"].dtype == torch.uint8
    torch.testing.assert_close(found["labels"].sum(1), torch.ones(4))
    assert (tmp_path / "my_cache").is_dir()
    assert generators() == []
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.slow
def test_an_exception_ends_the_process_and_a_second_loader_resumes(recipe, temporary_folder):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    mixing = {"starvation": "wait", "synthetic_probability": 1}
    overrides = {"optim.batch_size": 2, "mixing": mixing}
    with pytest.raises(ZeroDivisionError), open_loader(recipe, **overrides) as loader:  # noqa: PT012
        (process,) = generators()
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
        first, state = next(iter(loader)), loader.state_dict()
        1 / 0  # noqa: B018
    assert not process.is_running()
    assert generators() == []
    (kept,) = temporary_folder.iterdir()
    assert "cache" in (kept / "generator.log").read_text()
    assert len(first.images) == first.served.fresh == 2

    with open_loader(recipe, **overrides) as loader:
        loader.load_state_dict(state)
        assert len(list(loader)) == len(loader) == 3


def test_a_mistake_in_an_override_is_one_line(recipe):
    with (
        pytest.raises(UserError, match=r"^cache.pathh is no known key"),
        open_loader(recipe, cache={"pathh": "x"}),
    ):
        pass


REAL = {"mixing.synthetic_probability": 0}
"""No image is generated, so no process has to start."""


class Crows(Dataset):
    """Noise in two classes, as PIL images; the red channel tells which."""

    classes = ("crow", "jay")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)
        pixels[..., 0] = 100 * (index % 2)
        return Image.fromarray(pixels), index % 2


@pytest.mark.slow
def test_a_data_set_of_one_s_own_is_varied_and_served(recipe, tmp_path):
    overrides = {"mixing": {"starvation": "wait", "synthetic_probability": 0.5}}
    overrides |= {"data.root": tmp_path / "data", "data.metaclass": "bird"}
    loader = open_loader(recipe, dataset=Crows(), **overrides)
    try:
        for images, labels in loader:
            assert images.shape == (4, 3, 16, 16)
            assert labels.shape == (4, 2)
        assert loader.stats().served_fresh > 0
        known = {loader.dataset.images.digest(index) for index in range(8)}
        assert {request.source_digest for request in loader.served()} <= known
    finally:
        loader.close()
    assert generators() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_one_s_own_data_set_is_served_in_every_epoch_with_workers_too(recipe, tmp_path, workers):
    data = {"root": tmp_path / "data", "workers": workers}
    with open_loader(recipe, dataset=Crows(), data=data, **REAL) as loader:
        for _ in range(2):
            batches = list(loader)
            assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == [*range(8)]
            for batch in batches:
                assert batch.labels.argmax(1).tolist() == (batch.indices % 2).tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_transform_of_one_s_own_gets_pil_images_and_takes_the_place_of_ours(recipe, workers):
    with open_loader(
        recipe, transform=Compose([RandomCrop(12), ToTensor()]), **REAL, **{"data.workers": workers}
    ) as loader:
        state = torch.get_rng_state()
        first = next(iter(loader))
        assert torch.equal(torch.get_rng_state(), state)
        assert first.images.shape == (4, 3, 12, 12)
        assert first.images.dtype == torch.float32
        loader.set_epoch(0)
        assert torch.equal(next(iter(loader)).images, first.images)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            lambda image: image,
            "^transform must make a tensor or an array of a PIL image, got Image",
        ),
        (
            lambda image: torch.zeros(3, 4, 4 + int(np.asarray(image)[0, 0, 0]) % 2),
            "^transform must make images of one shape, got",
        ),
    ],
)
def test_a_transform_that_makes_something_else_is_refused(recipe, workers, transform, message):
    overrides = {**REAL, "data.workers": workers, "optim.batch_size": 8}
    with (
        open_loader(recipe, transform=transform, **overrides) as loader,
        pytest.raises(UserError, match=message),
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "flip"}, "^transform must be a function of a PIL image, got 'flip'"),
        ({"mode": "indices"}, "^mode must be batches or index, got 'indices'"),
        ({"rank": 1}, "^rank and world_size must be given together, got 1 and None"),
        ({"rank": 2, "world_size": 2}, "^rank must be below world_size, got 2 of 2"),
        (
            {"rank": 0, "world_size": 3},
            "^optim.batch_size must be a multiple of the 3 ranks, got 4",
        ),
        ({"dataset": [(1, 2)]}, "^class_names must be given"),
        ({"dataset": [], "class_names": ("a", "b")}, "^dataset must hold images"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(
    recipe, temporary_folder, options, message
):
    with pytest.raises(UserError, match=message):
        open_loader(recipe, **REAL, **options)
    assert list(temporary_folder.iterdir()) == []


def test_the_ranks_share_an_epoch(recipe):
    served = []
    for rank in range(2):
        with open_loader(recipe, rank=rank, world_size=2, **REAL) as loader:
            assert len(loader) == 2
            for batch in loader:
                assert len(batch.images) == 2
                served += batch.indices.tolist()
    assert sorted(served) == [*range(8)]


def test_what_has_to_be_made_first_is_refused_if_that_is_asked(tmp_path, tiny_model):
    config = make_config(tmp_path, tiny_model)
    with pytest.raises(UserError, match="^prepare must be true .* no fine-tuned model in .*fill$"):
        open_loader(config, prepare=False)


def test_the_process_s_state_is_left_as_it_was(recipe):
    def state():
        return (
            dict(os.environ),
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            list(warnings.filters),
            [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
            logging.getLogger().handlers[:],
        )

    with open_loader(recipe, **REAL) as loader:
        next(iter(loader))  # imports come first
    before = state()
    with open_loader(recipe, **REAL) as one, open_loader(recipe, **REAL) as other:
        assert [b.indices.tolist() for b in one] == [b.indices.tolist() for b in other]
        assert state() == before
    assert state() == before


@pytest.mark.slow
def test_fine_tuning_leaves_the_process_its_settings_of_memory(tmp_path, tiny_model, monkeypatch):
    calls = []
    libc = SimpleNamespace(mallopt=lambda *settings: calls.append(settings))
    monkeypatch.setattr(cores, "ctypes", SimpleNamespace(CDLL=lambda _: libc))
    with open_loader(make_config(tmp_path, tiny_model)) as loader:
        assert len(next(iter(loader)).images) > 0
    assert calls == []
    cores.keep_freed_memory("cpu")
    assert calls != []


@pytest.mark.slow
def test_the_live_teacher_s_maps_are_published_by_the_loop_and_survive_a_resume(
    tmp_path, tiny_model
):
    config = make_config(
        tmp_path,
        tiny_model,
        finetune={"enabled": False},
        method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5},
        saliency={"teacher": "classifier", "image_size": 64},
        mixing={"starvation": "wait", "synthetic_probability": 0.5},
        classifier={"name": "test_convnext"},  # untrained, it sees a foreground
    )
    classifier = build_classifier(config.classifier, 2, seed=1)
    with open_loader(config) as loader:
        assert all(batch.served.synthetic == 0 for batch in loader)  # no map yet, so no plan
        loader.publish(classifier)
        for _ in loader:
            with pytest.raises(UserError, match="^publish must be called between two epochs"):
                loader.publish(classifier)
        assert loader.stats().served_fresh > 0
        state = loader.state_dict()
        content = [batch.images.tolist() for batch in loader]
    with open_loader(config) as loader:
        loader.load_state_dict(state)
        assert [batch.images.tolist() for batch in loader] == content
    assert generators() == []


def test_losses_are_told_by_the_indices_of_a_batch(recipe):
    overrides = {**REAL, "schedule.priority": "hard"}
    with open_loader(recipe, **overrides) as loader:
        batch = next(iter(loader))
        for losses, message in (
            (
                torch.ones(3),
                "^losses must be one number for each of 4 indices, got shape .3,.*none",
            ),
            (torch.tensor(0.5), "^losses must be one number for each of 4 indices, got shape ..:"),
        ):
            with pytest.raises(UserError, match=message):
                loader.report_losses(batch.indices, losses)
        with pytest.raises(UserError, match="^indices must be batch.indices of one of the last"):
            loader.report_losses([999], [0.5])


def test_maps_of_the_classifier_need_ranks_that_can_tell_each_other(tmp_path, tiny_model):
    config = make_config(
        tmp_path,
        tiny_model,
        finetune={"enabled": False},
        method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5},
        saliency={"teacher": "classifier", "image_size": 64},
    )
    with pytest.raises(UserError, match="^saliency.teacher must be a file of weights if the ranks"):
        open_loader(config, rank=0, world_size=2)


def test_a_recipe_s_cuts_leave_nothing_out_of_one_s_own_data_set(recipe, tmp_path):
    config = load_config(recipe, ["data.examples_per_class=2"])
    overrides = {**REAL, "data.root": tmp_path / "data"}
    with open_loader(config, dataset=Crows(), **overrides) as loader:
        assert len(loader.dataset) == 8
    overrides["data.examples_per_class"] = 3
    with open_loader(config, dataset=Crows(), **overrides) as loader:
        assert len(loader.dataset) == 6
