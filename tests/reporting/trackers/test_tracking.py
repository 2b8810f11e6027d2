"""Trackers get figures, pictures and settings, go on where they were, and never end a training.

TensorBoard and W&B (offline) are the real ones. MLflow and Trackio need older versions of packages
that we pin (importlib_metadata, Pillow), so they are tested where somebody has installed them.
"""

import json
import os
import re
from typing import get_args, get_type_hints

import numpy as np
import psutil
import pytest
from accelerate.tracking import GeneralTracker

from online_aug.cli.train import main as train
from online_aug.config.sections import RunConfig
from online_aug.errors import UserError
from online_aug.reporting.metrics import TENSORBOARD_TAGS
from online_aug.reporting.trackers import libraries, tracking
from online_aug.reporting.trackers.libraries import Library, Place
from online_aug.reporting.trackers.tracking import IDS_FILE, TRACKERS, Trackers, check_trackers

SETTINGS = {"run.epochs": 3, "optim.lr": 0.01, "method.strength": [0.5, 0.9], "run.name": None}
PICTURE = np.full((6, 4, 3), 200, np.uint8)


def follow(folder, names, steps, first_step=0, say=pytest.fail):
    """Log a few steps and a picture as a run does, and close."""
    place = Place(name="birds-seed0", folder=folder, first_step=first_step)
    trackers = Trackers(names, place, SETTINGS, say)
    trackers.start()
    for step in steps:
        trackers.log({"val_top1": step / 100, "rejections/off-class (50 %)": 1}, step)
    trackers.log_image("served/gallery", PICTURE, steps[-1])
    trackers.log({"summary/top1": 0.9}, steps[-1])
    trackers.close()


def test_the_key_names_the_trackers_there_are():
    (names, _) = get_args(get_type_hints(RunConfig)["trackers"])
    assert set(get_args(names)) == set(TRACKERS)
    assert RunConfig(trackers="wandb").trackers == ("wandb",)
    assert RunConfig(trackers=[]).trackers == ()


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_groups_figures_by_tags_and_shows_pictures_and_settings(tmp_path):
    follow(tmp_path, ["tensorboard"], [10, 20])
    events = events_of(tmp_path)
    found = [(event.step, event.value) for event in events.Scalars(TENSORBOARD_TAGS["val_top1"])]
    assert found == [(10, pytest.approx(0.1)), (20, pytest.approx(0.2))]
    assert "generator/rejected_for/off-class (50 %)" in events.Tags()["scalars"]
    assert [event.step for event in events.Images("served/gallery")] == [20]
    assert events.Images("served/gallery")[0].height == 6
    (config,) = events.Tensors("config/text_summary")
    assert b"optim.lr: 0.01" in config.tensor_proto.string_val[0]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    follow(tmp_path, ["tensorboard"], [10, 20, 30, 40])
    follow(tmp_path, ["tensorboard"], [30, 40, 50], first_step=21)
    assert [event.step for event in events_of(tmp_path).Scalars("val/top1")] == [10, 20, 30, 40, 50]


def test_a_tracker_named_twice_logs_once(tmp_path):
    follow(tmp_path, ["tensorboard", "tensorboard"], [10])
    assert len(events_of(tmp_path).Scalars("val/top1")) == 1


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Let W&B keep runs in their directory, and leave none of its processes behind."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield wandb
    wandb.teardown()


def test_wandb_keeps_an_offline_run_in_the_run_directory_and_resumes_it(tmp_path, offline):
    check_trackers(["wandb"])
    assert [each.name() for each in psutil.Process().children() if "wandb" in each.name()] == []
    follow(tmp_path, ["wandb"], [10, 20])
    offline.teardown()  # waits until everything is written
    run_id = json.loads((tmp_path / IDS_FILE).read_text())["wandb"]
    (file,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    content = file.read_bytes()
    for told in (b"val_top1", b"0.2", b"summary/top1", b"optim.lr", b"birds-seed0", b"online-aug"):
        assert told in content
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/served/gallery*.png")
    assert picture.stat().st_size > 0
    follow(tmp_path, ["wandb"], [30], first_step=21)
    assert json.loads((tmp_path / IDS_FILE).read_text()) == {"wandb": run_id}
    assert len({path.name for path in tmp_path.glob(f"wandb/**/run-{run_id}.wandb")}) == 1


def test_wandb_without_a_key_is_one_line(tmp_path, offline, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    offline.teardown()  # it has read its environment before
    with pytest.raises(UserError) as caught:
        check_trackers(["wandb"])
    said = r"wandb knows no key for api\.[a-z.]+: wandb login, WANDB_API_KEY, or WANDB_MODE=offline"
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)


def test_wandb_with_a_key_in_netrc_is_ready(tmp_path, offline, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    offline.teardown()
    check_trackers(["wandb"])


@pytest.mark.parametrize("uri", ["file:{}/mlruns", "{}/mlruns", "sqlite:///{}/mlflow.db"])
def test_mlflow_keeps_a_run_in_a_folder_and_resumes_it(tmp_path, monkeypatch, uri):
    mlflow = pytest.importorskip(
        "mlflow", reason="mlflow needs importlib_metadata below 10, which is pinned at 10"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    check_trackers(["mlflow"])
    assert list(tmp_path.iterdir()) == []
    follow(tmp_path, ["mlflow"], [10, 20])
    follow(tmp_path, ["mlflow"], [30], first_step=21)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'online-aug'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "birds-seed0"
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.01"
    history = client.get_metric_history(run.info.run_id, "val_top1")
    assert sorted(each.step for each in history) == [10, 20, 30]
    assert run.data.metrics["summary/top1"] == 0.9
    assert [each.path for each in client.list_artifacts(run.info.run_id, "served")] == [
        "served/gallery.png"
    ]


def test_a_folder_that_mlflow_does_not_take_any_more_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip(
        "mlflow", reason="mlflow needs importlib_metadata below 10, which is pinned at 10"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(UserError, match="maintenance mode.*set MLFLOW_TRACKING_URI, such as sql"):
        check_trackers(["mlflow"])
    assert list(tmp_path.iterdir()) == []


def test_a_server_of_mlflow_that_does_not_answer_is_one_line(monkeypatch):
    pytest.importorskip(
        "mlflow", reason="mlflow needs importlib_metadata below 10, which is pinned at 10"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="mlflow cannot use http://127.0.0.1:1 ") as caught:
        check_trackers(["mlflow"])
    assert "\n" not in str(caught.value)


def test_trackio_keeps_a_run_on_this_machine_and_resumes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    trackio = pytest.importorskip(
        "trackio", reason="trackio needs Pillow below 13, which is pinned at 13"
    )
    check_trackers(["trackio"])
    follow(tmp_path, ["trackio"], [10, 20])
    follow(tmp_path, ["trackio"], [30], first_step=21)
    (run,) = trackio.Api().runs("online-aug")
    assert run.name == "birds-seed0"


class Recorder(GeneralTracker):
    """accelerate's base class, with what it asks of a tracker, in memory."""

    name, requires_logging_directory, main_process_only = "recorder", False, True
    logged: list = []  # noqa: RUF012

    def __init__(self, run_id):
        super().__init__()
        self.run_id = run_id

    @property
    def tracker(self):
        return self

    def start(self):
        self.logged.append(("start", self.run_id))

    def store_init_configuration(self, values):
        self.logged.append(("settings", values))

    def log(self, values, step=None):
        self.logged.append((step, values))

    def log_images(self, values, step=None):
        self.logged.append((step, sorted(values)))

    def finish(self):
        self.logged.append(("finish", None))


class RecorderLibrary(Library):
    package = "json"

    def open(self, place, run_id):
        return Recorder(run_id)

    def id_of(self, tracker):
        return tracker.run_id or "r1"


@pytest.fixture
def recorded(monkeypatch):
    """Add a tracker that only remembers; return what it was told."""
    monkeypatch.setitem(tracking.TRACKERS, "recorder", RecorderLibrary())
    monkeypatch.setattr(Recorder, "logged", [])
    return Recorder.logged


def test_a_run_is_started_told_everything_and_finished(tmp_path, recorded):
    follow(tmp_path, ["recorder"], [10])
    settings = SETTINGS | {"method.strength": "[0.5, 0.9]"}
    assert recorded == [
        ("start", None),
        ("settings", settings),
        (10, {"val_top1": 0.1, "rejections/off-class (50 %)": 1}),
        (10, ["served/gallery"]),
        (10, {"summary/top1": 0.9}),
        ("finish", None),
    ]


def test_a_resumed_run_goes_on_under_its_id(tmp_path, recorded):
    follow(tmp_path, ["recorder"], [10])
    follow(tmp_path, ["recorder"], [20])
    assert [told for what, told in recorded if what == "start"] == [None, "r1"]


def test_a_tracker_that_fails_while_training_is_named_and_nothing_ends(
    tmp_path, recorded, monkeypatch
):
    def fail(self, values, step=None):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(Recorder, "log", fail)
    said = []
    follow(tmp_path, ["recorder", "tensorboard"], [10], say=said.append)
    assert said[0] == "warning: tracker recorder failed, training goes on: no network"
    assert len(events_of(tmp_path).Scalars("val/top1")) == 1
    assert recorded[-1] == ("finish", None)


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, recorded, monkeypatch):
    def fail(self):
        raise RuntimeError("quota\nexceeded")

    monkeypatch.setattr(Recorder, "start", fail)
    with pytest.raises(UserError, match="recorder does not: quota$"):
        follow(tmp_path, ["recorder"], [10])
    (tmp_path / IDS_FILE).write_text('{"recorder": "gone"}')
    with pytest.raises(UserError, match=rf"quota; remove .*{IDS_FILE} to begin a new one$"):
        follow(tmp_path, ["recorder"], [10])


def test_ids_that_cannot_be_read_are_one_line(tmp_path, recorded):
    (tmp_path / IDS_FILE).write_text("{")
    with pytest.raises(UserError, match=f"{IDS_FILE} must be what a run wrote there"):
        follow(tmp_path, ["recorder"], [10])


def test_accelerate_sees_neither_the_launcher_nor_the_devices(tmp_path, recorded, monkeypatch):
    from accelerate.state import PartialState

    PartialState._reset_state()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    follow(tmp_path, ["recorder"], [10])
    state = PartialState()
    assert (state.num_processes, str(state.device)) == (1, "cpu")
    assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("4", "0")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch, name):
    monkeypatch.setattr(libraries, "find_spec", lambda package: None)
    with pytest.raises(UserError) as caught:
        check_trackers([name])
    expected = f"run.trackers must be ready, {name} is not installed: pip install {name}"
    assert str(caught.value) == expected


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_run_with_a_tracker_that_is_not_there_starts_nothing(
    tmp_path, monkeypatch, words, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(libraries, "find_spec", lambda package: None)
    with pytest.raises(UserError, match="mlflow is not installed: pip install mlflow"):
        train(["quickstart", "run.trackers=[tensorboard, mlflow]", *words])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_an_unknown_tracker_names_the_known_ones():
    with pytest.raises(UserError, match="run.trackers"):
        train(["quickstart", "run.trackers=[tensorbord]"])
