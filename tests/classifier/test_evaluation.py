"""Evaluation: accuracies, loss and parts of a set, with the classifier left as it was."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from online_aug.classifier.evaluation import evaluate
from online_aug.data.image_sets import FolderSet, Groups, Subset
from online_aug.data.images import BadImageError
from online_aug.data.settings import DataConfig

DATA = DataConfig(image_size=16)


@dataclass
class FlatImages:
    """An image set in memory: the grey value of an image shows its class; `bad` cannot be read."""

    labels: np.ndarray
    class_names: tuple[str, ...] = ("dark", "middle", "bright")
    bad: int | None = None

    def __len__(self):
        return len(self.labels)

    def load(self, index):
        if index == self.bad:
            raise BadImageError(f"image {index} cannot be read")
        return np.full((20, 20, 3), 100 * self.labels[index], dtype=np.uint8)


class ByBrightness(nn.Module):
    """A classifier that predicts dark or bright, never middle, with dropout while training."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(3).eval()
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        grey = self.drop(images).mean((1, 2, 3))
        return torch.stack([-grey, torch.full_like(grey, -9.0), grey], 1)


def evaluated(labels=(0, 0, 1, 2), classifier=None, data=DATA, bad=None, **options):
    images = FlatImages(np.array(labels), bad=bad)
    return evaluate(classifier or ByBrightness(), images, data, "cpu", **options)


def test_accuracies_equal_a_count_by_hand():
    found = evaluated((0, 0, 1, 2))
    assert found.top1 == 0.75
    assert found.per_class == {"dark": 1.0, "middle": 0.0, "bright": 1.0}
    assert found.images == 4


def test_the_confusion_matrix_counts_what_was_taken_for_what():
    found = evaluated((0, 0, 1, 2))
    assert found.confusion == {
        "dark": {"dark": 2},
        "middle": {"dark": 1},
        "bright": {"bright": 1},
    }


def test_the_loss_is_the_mean_over_images():
    separate = [evaluated((label,)).loss for label in (0, 1, 2)]
    assert evaluated((0, 1, 2)).loss == pytest.approx(sum(separate) / 3, rel=1e-5)


def test_the_batch_size_does_not_change_the_result():
    labels = tuple(np.random.default_rng(0).integers(3, size=23))
    small, large = evaluated(labels, batch_size=4), evaluated(labels, batch_size=256)
    assert (small.top1, small.per_class) == (large.top1, large.per_class)
    assert small.loss == pytest.approx(large.loss, rel=1e-6)


def test_a_class_without_images_is_left_out():
    assert evaluated((0, 2)).per_class == {"dark": 1.0, "bright": 1.0}


def test_the_mode_of_every_module_is_restored():
    classifier = ByBrightness()
    assert classifier.training
    evaluated(classifier=classifier)
    assert classifier.training
    assert classifier.drop.training
    assert not classifier.frozen.training


def test_the_mode_is_restored_after_an_error():
    classifier = ByBrightness()
    with pytest.raises(BadImageError):
        evaluated(classifier=classifier, bad=1)
    assert classifier.training


def test_the_global_random_states_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    evaluated()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_an_unreadable_image_is_left_out_if_configured():
    found = evaluated((0, 0, 1, 2), data=DataConfig(image_size=16, on_bad_image="skip"), bad=2)
    assert (found.top1, found.images) == (1.0, 3)


def test_a_set_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        evaluated(())


class FixedRanking(nn.Module):
    """A classifier that ranks ten classes by their number, whatever it sees."""

    num_classes = 10

    def forward(self, images):
        return torch.arange(10.0).flip(0).repeat(len(images), 1)


def test_top5_counts_classes_among_the_five_largest_outputs():
    images = FlatImages(np.array([0, 4, 5, 9]), class_names=tuple("abcdefghij"))
    found = evaluate(FixedRanking(), images, DATA, "cpu")
    assert (found.top1, found.top5) == (0.25, 0.5)


@pytest.fixture
def grouped(tmp_path):
    """Return four images in two groups, of which only the dark and the bright are recognised."""
    levels = (0, 100, 200, 200)
    for number, level in enumerate(levels):
        Image.new("RGB", (20, 20), (level, level, level)).save(tmp_path / f"{number}.png")
    return FolderSet(
        root=tmp_path,
        files=tuple(f"{number}.png" for number in range(4)),
        class_names=("dark", "middle", "bright"),
        labels=np.array([0, 1, 2, 2]),
        groups=Groups(("on land", "on water", "in the air"), np.array([0, 0, 1, 1])),
    )


def test_the_accuracy_of_each_group_and_the_worst_is_reported(grouped):
    found = evaluate(ByBrightness(), grouped, DATA, "cpu")
    assert found.per_group == {"on land": 0.5, "on water": 1.0}
    assert found.worst_group == 0.5


def test_a_subset_keeps_the_groups_of_its_images(grouped):
    found = evaluate(ByBrightness(), Subset(grouped, np.array([3, 1])), DATA, "cpu")
    assert found.per_group == {"on land": 0.0, "on water": 1.0}


def test_a_set_without_groups_has_no_worst_group():
    found = evaluated()
    assert (found.per_group, found.worst_group) == ({}, None)


def test_a_long_tail_is_reported_by_the_training_images_of_the_classes():
    train = np.repeat([0, 1, 2], [11, 10, 4])
    long_tail = DataConfig(image_size=16, imbalance_factor=0.5, many_few=(10, 5))
    found = evaluated((0, 1, 2, 2), data=long_tail, train_labels=train)
    assert found.per_shots == {"many": 1.0, "medium": 0.0, "few": 1.0}


def test_without_a_long_tail_nothing_is_reported_by_class_size():
    assert evaluated(train_labels=np.array([0, 1, 2])).per_shots == {}
