"""Whole runs whose images come from an image server: to the end, again, and stopped."""

import signal

import pytest
import yaml
from edit_server import HANG, KEY, edit_server
from tiny_runs import Launch, processes_of, read_metrics, read_summary, run_folder, wait_for

from cache import Store

pytestmark = pytest.mark.slow

SOURCES, VARIANTS, SIDE = 20, 2, 32
PLANNED = SOURCES * VARIANTS


@pytest.fixture
def server():
    with edit_server() as serving:
        yield serving


@pytest.fixture
def recipe(tmp_path, embedded_root, server):
    """A configuration of which everything but the data lies in a folder of the test's own."""
    content = {
        "run": {"dir": str(tmp_path / "runs"), "epochs": 3},
        "data": {
            **{"source": "digits", "root": str(embedded_root), "image_size": 32},
            **{"examples_per_class": 2, "epoch_repeats": 3},
        },
        "method": {"name": "diffusemix", "fractal_weight": 0},
        "mixing": {"starvation": "wait", "synthetic_probability": 0.4, "head_start": PLANNED},
        "generation": {"engine": "openai", "resolution": SIDE, "variants_per_image": VARIANTS},
        "image_server": {"url": server.url},
        "cache": {"path": str(tmp_path / "cache")},
        "classifier": {"name": "test_resnet"},
        "optim": {"batch_size": 10},
    }
    path = tmp_path / "served.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(recipe, name, *overrides):
    return Launch("train.py", recipe, f"run.name={name}", *overrides, told={"OPENAI_API_KEY": KEY})


def fill(recipe, *overrides):
    return Launch("-m", "online_aug", "fill", recipe, *overrides)


def forms(server):
    return [(form["image"], form["prompt"], form["seed"]) for form in server.forms]


def test_a_run_trains_to_its_end_and_the_next_reuses_every_image(recipe, server):
    server.answers = [500, (200, b"<html>"), (429, {"detail": "busy"}, {"Retry-After": "1"})]
    first = train(recipe, "first").succeed()
    assert f"server     {server.url} has editor-1 (version 0.9.1, root hub/editor)\n" in first.out
    folder = run_folder(recipe, "first")
    made = read_summary(folder)
    assert made["epochs"] == len(read_metrics(folder)) == 3
    assert made["generated"] == len(set(forms(server))) == len(server.forms) - 3 == PLANNED
    assert made["served_fresh"] > 0
    assert made["generator_restarts"] == 0
    assert set(server.keys) == {f"Bearer {KEY}"}
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert [path.name for path in written if KEY.encode() in path.read_bytes()] == []
    assert "asked again in" in (folder / "generator.log").read_text()

    asked = len(server.forms)
    train(recipe, "second").succeed()
    again = read_summary(run_folder(recipe, "second"))
    assert (again["reused"], again["generated"], len(server.forms)) == (PLANNED, 0, asked)


def test_what_is_in_the_cache_is_served_without_the_server(recipe, server):
    fill(recipe).succeed()
    (asked,) = {len(server.forms)}
    told = ["generation.model=editor-1", "image_server.version=version 0.9.1, root hub/editor"]
    nobody = "image_server.url=http://127.0.0.1:9/v1"
    train(recipe, "served", *told, nobody, "devices.generate=none", "run.epochs=1").succeed()
    summary = read_summary(run_folder(recipe, "served"))
    assert (summary["generated"], summary["starved"], len(server.forms)) == (0, 0, asked)
    assert summary["served_cached"] > 0
    refused = train(recipe, "refused", nobody)
    assert refused.wait() == 2
    assert refused.err.startswith("error: image_server.url must be a server that is reachable")
    assert refused.err.count("\n") == 1
    assert not run_folder(recipe, "refused").exists()


def test_ctrl_c_ends_a_fill_whose_server_hangs_and_the_same_command_goes_on(recipe, server):
    server.answers = [200] * 8 + [HANG] * 99
    first = fill(recipe)
    wait_for(lambda: len(server.forms) >= 12, first)
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 128 + signal.SIGINT, first.err
    assert first.out.splitlines()[-1] == "interrupted: the same command goes on"
    assert "Traceback" not in first.err
    server.answers = []
    fill(recipe).succeed()
    with Store(recipe.parent / "cache", readonly=True) as store:
        assert len(store) == PLANNED


def test_a_run_ends_in_one_line_when_the_server_changes(recipe, server):
    def change(_):
        server.version = "0.9.2"
        return 200

    server.answers = [200, 200, change]
    run = train(recipe, "changed", "run.epochs=1000", "image_server.concurrency=1")
    assert run.wait() == 2
    assert "image_server.version must be that of the server" in run.err
    assert "Traceback" not in run.err
    assert processes_of("online_aug.producer", recipe.parent) == []
    with Store(recipe.parent / "cache", readonly=True) as store:
        assert len(store) <= 2


@pytest.mark.nightly
def test_a_run_outlives_a_server_that_is_busy_for_longer_than_it_is_asked(recipe, server):
    server.answers = [200, 503]
    train(recipe, "busy", "image_server.retries=0", "image_server.concurrency=1").succeed()
    summary = read_summary(run_folder(recipe, "busy"))
    assert (summary["generator_restarts"], summary["epochs"]) == (1, 3)
    assert summary["generated"] == PLANNED
