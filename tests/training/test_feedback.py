"""Saliency maps and losses that the classifier in training publishes."""

from functools import partial

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from classifier_samples import CLASSES, make_batch
from experiment_samples import make_experiment, make_sgd_mix_experiment

from online_aug.classifier.model import build_classifier
from online_aug.config.training import ClassifierConfig
from online_aug.distributed.world import World
from online_aug.saliency.maps import weights_version
from online_aug.training.feedback import ClassLosses, LossPublisher, SaliencyPublisher


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    return partial(make_sgd_mix_experiment, tmp_path, tiny_model)


def classifier_of(seed):
    return build_classifier(ClassifierConfig(name="test_resnet"), 2, seed=seed)


class Loader:
    """Stands for the loader: it notes the plans it is given."""

    def __init__(self):
        self.calls = []

    def extend(self, requests, *, version, epoch, lag):
        assert {request.saliency_version for request in requests} == {version}
        self.calls.append((epoch, version))


def publish(experiment, folder, epochs, *, resume_at=None):
    loader, world = Loader(), World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    publisher = SaliencyPublisher(experiment, loader, world, folder)
    if resume_at is not None:
        publisher.resume(resume_at)
    for epoch in epochs:
        publisher.refresh(epoch, classifier_of(seed=epoch))
    return loader.calls


def version_at(epoch):
    return weights_version(classifier_of(seed=epoch), "test_resnet", 64)


def test_every_few_epochs_the_loader_gets_a_plan_by_maps_of_the_present_weights(
    experiment_of, tmp_path
):
    calls = publish(experiment_of(refresh_epochs=2), tmp_path, range(6))
    assert calls == [(2, version_at(2)), (4, version_at(4))]


def test_a_restart_keeps_the_versions_before_its_epoch_and_makes_later_ones_again(
    experiment_of, tmp_path
):
    experiment = experiment_of(refresh_epochs=2)
    expected = publish(experiment, tmp_path, range(6))
    assert publish(experiment, tmp_path, range(3, 6), resume_at=3) == expected
    assert publish(experiment, tmp_path, range(4, 6), resume_at=4) == expected


def test_weights_that_did_not_change_are_no_new_version(experiment_of, tmp_path):
    loader, world = Loader(), World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    publisher = SaliencyPublisher(experiment_of(refresh_epochs=1), loader, world, tmp_path)
    for epoch in range(4):
        publisher.refresh(epoch, classifier_of(seed=0))
    assert [epoch for epoch, _ in loader.calls] == [1]


def test_with_grabcut_the_plan_is_by_masks_that_are_cut_anew(experiment_of, tmp_path):
    experiment = experiment_of(refresh_epochs=1, mask="grabcut")
    calls = publish(experiment, tmp_path, range(3))
    assert calls == [(epoch, f"{version_at(epoch)}+grabcut-256") for epoch in (1, 2)]
    table = experiment.saliency.table(calls[1][1], experiment.data.digests)
    assert table.packed_masks is not None


def test_with_a_file_as_teacher_nothing_is_published(experiment_of, tmp_path):
    weights = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(classifier_of(seed=5).state_dict(), weights)
    assert publish(experiment_of(teacher=weights, refresh_epochs=1), tmp_path, range(4)) == []


class Generator:
    """Stands for the supervisor: it notes what it is to tell."""

    def __init__(self):
        self.told = []

    def publish_losses(self, losses):
        self.told.append(losses)


def losses_told(experiment, process, steps):
    publisher = LossPublisher(experiment, process, torch.device("cpu"))
    for step in range(steps):
        if publisher.classes is not None:
            publisher.classes.add(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
        publisher.after_step(step + 1)
    return publisher


def test_losses_are_told_every_few_steps(tmp_path, tiny_model):
    experiment = make_experiment(
        tmp_path, tiny_model, schedule={"priority": "hard", "refresh_steps": 3}
    )
    process = Generator()
    losses_told(experiment, process, 8)
    assert process.told == [[None, pytest.approx(0.693, abs=1e-3)]] * 2


@pytest.mark.parametrize(("priority", "process"), [("uniform", Generator()), ("hard", None)])
def test_losses_are_not_watched_without_a_process_to_tell(tmp_path, tiny_model, priority, process):
    experiment = make_experiment(
        tmp_path, tiny_model, schedule={"priority": priority, "refresh_steps": 1}
    )
    assert losses_told(experiment, process, 3).classes is None
    assert process is None or process.told == []


CPU = torch.device("cpu")


def one_hot(*labels):
    return F.one_hot(torch.tensor(labels), 3).float()


def test_a_class_has_the_mean_loss_of_its_images():
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    losses = ClassLosses(3, CPU)
    losses.add(logits, one_hot(0, 0, 1))
    first, second, third = F.cross_entropy(
        logits, torch.tensor([0, 0, 1]), reduction="none"
    ).tolist()
    assert losses.read()[:2] == pytest.approx([(first + second) / 2, third])


def test_a_class_that_was_not_seen_has_none():
    losses = ClassLosses(3, CPU)
    assert losses.read() == [None, None, None]
    losses.add(torch.zeros(1, 3), one_hot(1))
    assert [loss is None for loss in losses.read()] == [True, False, True]


def test_an_image_between_two_classes_counts_for_each_by_its_share():
    label = torch.tensor([[0.75, 0.25, 0.0]])
    losses = ClassLosses(3, CPU)
    losses.add(torch.zeros(1, 3), label)
    losses.add(torch.tensor([[9.0, 0, 0]]), one_hot(0))
    first, second, _ = losses.read()
    assert second == pytest.approx(torch.log(torch.tensor(3.0)))
    assert first < second


def test_older_losses_count_less():
    losses = ClassLosses(3, CPU)
    for _ in range(50):
        losses.add(torch.zeros(1, 3), one_hot(0))
    for _ in range(500):
        losses.add(torch.tensor([[9.0, 0, 0]]), one_hot(0))
    assert losses.read()[0] < 0.02


def test_a_loss_that_is_not_finite_is_not_told():
    losses = ClassLosses(3, CPU)
    losses.add(torch.full((1, 3), float("nan")), one_hot(0))
    assert losses.read()[0] is None


def test_the_engine_shows_logits_with_labels_before_smoothing(make_engine):
    engine, seen = make_engine(optim={"label_smoothing": 0.2, "batch_size": 8}), []
    engine.watch = lambda logits, labels: seen.append((logits, labels))
    batch = make_batch(0)
    engine.train_step(batch)
    ((logits, labels),) = seen
    assert torch.equal(labels, batch.labels)
    assert logits.shape == (8, CLASSES)
    assert not logits.requires_grad


def test_a_watched_engine_trains_as_one_that_is_not(make_engine):
    engines = [make_engine(), make_engine()]
    losses = ClassLosses(CLASSES, CPU)
    engines[1].watch = losses.add
    first, second = ([float(e.train_step(make_batch(n))) for n in range(3)] for e in engines)
    assert first == second
    assert all(loss is not None for loss in losses.read())
