"""Losses that a loop of one's own reports reach the generation process as the trainer's do."""

import pytest
import torch
from experiment_samples import make_experiment

from online_aug.distributed.world import single
from online_aug.own_loop.feedback import LoopFeedback


class Process:
    """Stands for the supervisor: it notes what it is told."""

    def __init__(self):
        self.told = []

    def publish_losses(self, losses):
        self.told.append(losses)


class Loader:
    """Stands for the loader: only its process is asked for."""

    def __init__(self):
        self.process = Process()


def reported(tmp_path, tiny_model, schedule):
    loader = Loader()
    experiment = make_experiment(tmp_path, tiny_model, schedule=schedule)
    feedback = LoopFeedback(experiment, loader, single("cpu"), tmp_path)
    for _ in range(5):
        feedback.report(torch.tensor([0.5, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    return loader.process.told


def test_losses_are_told_by_class_every_few_reports(tmp_path, tiny_model):
    told = reported(tmp_path, tiny_model, {"priority": "hard", "refresh_steps": 2})
    assert told == [[pytest.approx(0.5), pytest.approx(2.0)]] * 2


def test_losses_are_told_to_nobody_with_another_priority(tmp_path, tiny_model):
    assert reported(tmp_path, tiny_model, {"priority": "uniform", "refresh_steps": 1}) == []
