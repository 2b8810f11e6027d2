"""The generation process' work, done in this process."""

from dataclasses import replace

import pytest
import torch
from experiment_samples import make_experiment

from cache import Store
from online_aug.config import Config
from online_aug.config.loading import resolved_yaml
from online_aug.data.transforms import fit_square
from online_aug.errors import UserError
from online_aug.experiment.images import SourceImages
from online_aug.generation.engine import ImageGenerator
from online_aug.methods import DiffMix
from online_aug.producer.__main__ import make_images
from online_aug.producer.messages import Placement


class Trainer:
    """Stands for the lifeline: what is told is kept, and nothing was served yet."""

    served, is_stopping, saliency_version, class_losses = 0, False, None, None

    def __init__(self):
        self.told = []

    def tell(self, status):
        self.told.append(status)


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    def make(**sections):
        return make_experiment(tmp_path, tiny_model, **{"finetune": {"enabled": False}} | sections)

    return make


def generate(experiment, folder):
    path = folder / "config.yaml"
    path.write_text(resolved_yaml(experiment.config))
    trainer = Trainer()
    make_images(path, Placement(device="cpu", threads=1), trainer)
    return trainer


def test_the_plan_of_the_trainer_is_what_gets_made(experiment_of, tmp_path):
    experiment = experiment_of()
    trainer = generate(experiment, tmp_path)
    assert (trainer.told[-1].state, trainer.told[-1].generated) == (
        "finished",
        len(experiment.plan),
    )
    with Store(experiment.config.cache.path) as store:
        assert all(store.contains([request.key for request in experiment.plan]))


def test_a_stored_image_is_made_from_its_own_source(experiment_of, tmp_path):
    experiment = experiment_of()
    generate(experiment, tmp_path)
    request = experiment.plan[5]
    sources = SourceImages(experiment.splits.train, experiment.sources)
    source = fit_square(sources.by_digest(request.source_digest), 64)
    generator = ImageGenerator.load(
        experiment.model, None, experiment.config.generation, experiment.dtype, "cpu"
    )
    expected = generator.generate([request], source.unsqueeze(0))[0]
    with Store(experiment.config.cache.path) as store:
        stored = torch.from_numpy(store.get(request.key).image.copy()).permute(2, 0, 1)
    assert (stored / 255 - expected).abs().max() <= 0.5 / 255 + 1e-4


def test_images_of_several_methods_are_prepared_each_by_its_own(
    experiment_of, tmp_path, monkeypatch
):
    listed = [{"name": "diff_mix"}, {"name": "diff_aug", "weight": 2.0}]
    config = experiment_of().config.model_dump(mode="json") | {"method": listed}
    experiment = replace(experiment_of(), config=Config.model_validate(config))
    prepared = []

    def prepare(self, images, requests, context, image_of):
        prepared.extend((self.name, request) for request in requests)
        return images

    monkeypatch.setattr(DiffMix, "prepare", prepare)
    generate(experiment, tmp_path)
    assert {request for _, request in prepared} == set(experiment.plan)
    assert all(name == request.method for name, request in prepared)


def test_a_whole_plan_is_noticed_without_loading_a_model(experiment_of, tmp_path, monkeypatch):
    experiment = experiment_of()
    generate(experiment, tmp_path)
    monkeypatch.delattr(ImageGenerator, "load")
    (status,) = generate(experiment_of(run={"seed": 3}), tmp_path).told
    assert (status.state, status.generated, status.reused) == ("finished", 0, len(experiment.plan))


@pytest.mark.parametrize(("starvation", "pauses"), [("substitute", True), ("wait", False)])
def test_it_pauses_when_far_ahead_unless_the_trainer_waits_for_each_image(
    experiment_of, tmp_path, starvation, pauses
):
    base = experiment_of().config.generation.model_dump()
    experiment = experiment_of(
        generation=base | {"max_ahead": 4}, mixing={"starvation": starvation}
    )
    trainer = Trainer()
    trainer.tell = lambda status: stop_when_paused(trainer, status)
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(experiment.config))
    make_images(path, Placement(device="cpu", threads=1), trainer)
    assert ("paused" in [status.state for status in trainer.told]) is pauses


def stop_when_paused(trainer, status):
    trainer.told.append(status)
    trainer.is_stopping = status.state == "paused"


def test_more_slots_than_memory_are_one_clear_line_before_anything_is_made(experiment_of, tmp_path):
    base = experiment_of().config.generation.model_dump()
    experiment = experiment_of(generation=base | {"slots": 10**9})
    with pytest.raises(
        UserError, match=r"^generation\.slots must fit into the memory of cpu, [^\n]*$"
    ):
        generate(experiment, tmp_path)
    with Store(experiment.config.cache.path, readonly=True) as store:
        assert len(store) == 0


def test_a_missing_fine_tuning_result_is_one_clear_line(tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model)
    with pytest.raises(UserError, match="^finetune.path must hold the result"):
        generate(experiment, tmp_path)
