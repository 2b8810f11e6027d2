import pytest
import torch
import torch.nn.functional as F
from classifier_samples import CLASSES, make_batch

from online_aug.training.feedback import ClassLosses

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


def test_what_is_long_ago_counts_less():
    losses = ClassLosses(3, CPU)
    for _ in range(50):
        losses.add(torch.zeros(1, 3), one_hot(0))
    for _ in range(500):
        losses.add(torch.tensor([[9.0, 0, 0]]), one_hot(0))
    assert losses.read()[0] < 0.02


def test_a_loss_that_is_none_is_not_told():
    losses = ClassLosses(3, CPU)
    losses.add(torch.full((1, 3), float("nan")), one_hot(0))
    assert losses.read()[0] is None


def test_the_engine_shows_what_was_said_with_labels_that_are_not_smoothed(make_engine):
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
