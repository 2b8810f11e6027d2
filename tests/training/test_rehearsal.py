import subprocess

import pytest
from classifier_samples import CLASSES, make_config

from online_aug.distributed.identity import LAUNCH_FOLDER
from online_aug.training.deepspeed_setup import check_deepspeed

RANK = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
STAGE_1 = {"deepspeed": {"zero_optimization": {"stage": 1}}}


class Tried(Exception):
    pass


@pytest.fixture
def _told(monkeypatch):
    """A process that is started is told of."""

    def run(*command, **options):
        raise Tried

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("_told")
def test_settings_are_tried_but_in_ranks_of_ours(monkeypatch):
    config = make_config(classifier=STAGE_1)
    for variables, is_tried in (
        ({}, True),
        (RANK, True),
        (RANK | {LAUNCH_FOLDER: "/tmp/record"}, False),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            if is_tried:
                with pytest.raises(Tried):
                    check_deepspeed(config, CLASSES, "cpu")
            else:
                check_deepspeed(config, CLASSES, "cpu")


@pytest.mark.usefixtures("_told")
def test_where_there_are_no_settings_nothing_is_tried():
    check_deepspeed(make_config(), CLASSES, "cpu")
