"""A world of one rank for all tests of a process: DeepSpeed starts only once."""

import pytest
from classifier_samples import CLASSES, make_config

from online_aug.classifier.model import build_classifier
from online_aug.training.engine import TrainingEngine


@pytest.fixture
def make_engine(world):
    def make(*, steps_per_epoch=4, num_classes=CLASSES, **sections):
        config = make_config(**sections)
        classifier = build_classifier(config.classifier, num_classes, seed=config.run.seed)
        return TrainingEngine(classifier, config, world, steps_per_epoch=steps_per_epoch)

    return make
