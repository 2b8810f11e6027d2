"""The work of the generation process, done in this process."""

import pytest
import torch
from experiment_samples import make_experiment

from cache import Store
from online_aug.config.loading import resolved_yaml
from online_aug.data.transforms import fit_square
from online_aug.errors import PassingError, UserError
from online_aug.experiment.images import SourceImages
from online_aug.generation.engine import ImageGenerator
from online_aug.producer import __main__ as process
from online_aug.producer.__main__ import make_images
from online_aug.producer.messages import Failed, Placement

pytestmark = pytest.mark.slow


class Trainer:
    """Stands for the pipe to the trainer: keeps what it is told; nothing was served yet."""

    served, is_stopping, saliency_version, class_losses = 0, False, None, None

    def __init__(self):
        self.told = []

    def tell(self, status):
        self.told.append(status)

    def wait_to_begin(self):
        return True


def generate(experiment, folder):
    path = folder / "config.yaml"
    path.write_text(resolved_yaml(experiment.config))
    trainer = Trainer()
    make_images(path, Placement(device="cpu", threads=1), trainer)
    return trainer.told


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """A folder with a complete plan in its cache, its experiment, and what was told."""
    folder = tmp_path_factory.mktemp("finished")
    experiment = make_experiment(folder, tiny_model, finetune={"enabled": False})
    return folder, experiment, generate(experiment, folder)


def test_the_images_of_the_trainer_s_plan_are_made(finished):
    _, experiment, told = finished
    assert (told[-1].state, told[-1].generated) == ("finished", len(experiment.plan))
    with Store(experiment.config.cache.path) as store:
        assert all(store.contains([request.key for request in experiment.plan]))


def test_a_stored_image_is_made_from_its_own_source(finished):
    _, experiment, _ = finished
    request = experiment.plan[5]
    sources = SourceImages(experiment.splits.train, experiment.data.sources)
    source = fit_square(sources.by_digest(request.source_digest), 64)
    generator = ImageGenerator.load(
        experiment.diffusion.model,
        None,
        experiment.config.generation,
        experiment.diffusion.dtype,
        "cpu",
    )
    expected = generator.generate([request], source.unsqueeze(0))[0]
    with Store(experiment.config.cache.path) as store:
        stored = torch.from_numpy(store.get(request.key).image.copy()).permute(2, 0, 1)
    assert (stored / 255 - expected).abs().max() <= 0.5 / 255 + 1e-4


def test_a_complete_plan_is_noticed_without_loading_a_model(finished, tiny_model, monkeypatch):
    folder, first, _ = finished
    monkeypatch.delattr(ImageGenerator, "load")
    again = make_experiment(folder, tiny_model, finetune={"enabled": False}, run={"seed": 3})
    (status,) = generate(again, folder)
    assert (status.state, status.generated, status.reused) == ("finished", 0, len(first.plan))


def test_more_slots_than_fit_into_memory_are_an_error_line_before_anything_is_made(
    tmp_path, tiny_model
):
    experiment = make_experiment(
        tmp_path, tiny_model, finetune={"enabled": False}, generation={"slots": 10**9}
    )
    with pytest.raises(
        UserError, match=r"^generation\.slots must fit into the memory of cpu, [^\n]*$"
    ):
        generate(experiment, tmp_path)
    with Store(experiment.config.cache.path, readonly=True) as store:
        assert len(store) == 0


@pytest.mark.parametrize(("kind", "is_final"), [(UserError, True), (PassingError, False)])
def test_a_failure_that_may_pass_is_told_as_one_after_which_a_restart_helps(
    monkeypatch, kind, is_final
):
    trainer = Trainer()

    def fail(*_):
        raise kind("image_server.url must be free")

    for name, stand_in in (
        ("tie_to_parent", lambda: None),
        ("TrainerPipe", lambda: trainer),
        ("import_libraries", lambda _: None),
        ("make_images", fail),
    ):
        monkeypatch.setattr(process, name, stand_in)
    placement = Placement(device="cpu", threads=1)
    assert process.main(["config.yaml", placement.model_dump_json()]) == 2
    assert trainer.told[-1] == Failed(reason="image_server.url must be free", is_final=is_final)


def test_a_missing_fine_tuning_result_is_an_error_line(tmp_path, tiny_model):
    with pytest.raises(UserError, match="^finetune.path must hold the result"):
        generate(make_experiment(tmp_path, tiny_model), tmp_path)
