"""The loader of somebody's own training loop, with a real generation process."""

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
import torch
from experiment_samples import make_config

from online_aug import OnlineAugLoader, open_loader
from online_aug.config.loading import resolved_yaml
from online_aug.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "TRAINING.md"
OVERRIDES = {"finetune": {"enabled": False}}


@pytest.fixture
def recipe(tmp_path, tiny_model):
    """A YAML file with a tiny random model that nothing has to be prepared for."""
    path = tmp_path / "tiny.yaml"
    path.write_text(resolved_yaml(make_config(tmp_path, tiny_model, **OVERRIDES)))
    return path


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """Folders for temporary files are made here."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def generators():
    """Generation processes that this process has started."""
    children = psutil.Process(os.getpid()).children(recursive=True)
    return [child for child in children if "online_aug.producer" in child.cmdline()]


@pytest.mark.slow
def test_the_loop_of_the_documentation_trains(recipe, tmp_path, monkeypatch, temporary_folder):
    (loop,) = re.findall(r"```python\n(.*?open_loader.*?)```", PAGE.read_text(), re.S)
    assert len(loop.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    found = {}
    ours = loop.replace('"quickstart"', repr(str(recipe))).replace(
        "num_classes=12", "num_classes=2"
    )
    exec(ours, found)
    assert isinstance(found["loader"], OnlineAugLoader)
    assert torch.isfinite(found["loss"])
    assert found["batch"].images.dtype == torch.uint8
    torch.testing.assert_close(found["batch"].labels.sum(1), torch.ones(4))
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


def test_a_configuration_whose_maps_follow_the_classifier_is_refused(tmp_path, tiny_model):
    sections = {"method": {"name": "sgd_mix"}, "saliency": {"teacher": "classifier"}}
    config = make_config(tmp_path, tiny_model, **sections)
    with (
        pytest.raises(UserError, match=r"^saliency.teacher must be a file of weights.*own"),
        open_loader(config),
    ):
        pass
