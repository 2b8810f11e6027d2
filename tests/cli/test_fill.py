"""`online-aug fill`, in this process."""

import os
import signal

import pytest
from experiment_samples import make_config, make_experiment

from cache import Store
from online_aug.cli import fill as command
from online_aug.cli.main import run_command
from online_aug.config.loading import resolved_yaml
from online_aug.console import Tally
from online_aug.errors import UserError
from online_aug.generation.engine import ImageGenerator
from online_aug.producer import filling
from online_aug.producer.messages import Status


@pytest.fixture
def call(tmp_path, tiny_model, capsys):
    """The status and the lines of a call; `sections` change the configuration."""

    def run(*argv, **sections):
        config = make_config(tmp_path, tiny_model, **{"finetune": {"enabled": False}} | sections)
        path = tmp_path / "small.yaml"
        path.write_text(resolved_yaml(config))
        status = command.main([str(path), *argv])
        return status, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def plan(tmp_path, tiny_model):
    return make_experiment(tmp_path, tiny_model, finetune={"enabled": False}).plan


def present(folder, requests):
    with Store(folder / "cache", readonly=True) as store:
        return sum(store.contains([request.key for request in requests]))


@pytest.mark.slow
def test_all_of_the_plan_is_made_and_stored_as_configured(call, plan, tmp_path):
    status, lines = call(cache={"codec": "png"})
    assert status == 0
    with Store(tmp_path / "cache", readonly=True) as store:
        assert {store.inspect(request.key).codec.name for request in plan} == {"png"}
    assert present(tmp_path, plan) == len(plan) == 16
    assert lines[0].startswith("devices    generate on cpu (")
    assert f"cache {tmp_path}/cache: 0 of the plan's 16 images, 0 B in all" in lines
    assert lines[-1].startswith(f"cache {tmp_path}/cache: 16 of the plan's 16 images, ")


@pytest.mark.slow
def test_tasks_of_a_launcher_make_their_parts_and_one_that_died_leaves_its_own_to_the_rest(
    call, plan, tmp_path, monkeypatch
):
    for number in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
        monkeypatch.setenv("SLURM_LOCALID", "0")
        status, _ = call(cache={"path": tmp_path / f"node{number}"}, schedule={"helps": False})
        assert status == 0
    parts = [store_of(tmp_path / f"node{number}") for number in range(2)]
    assert all(parts)
    assert not parts[0] & parts[1]
    lacking = {request.key for request in plan} - parts[0] - parts[1]
    merge = ["merge", str(tmp_path / "node0"), str(tmp_path / "node1")]
    assert run_command(["cache", *merge, "--into", str(tmp_path / "cache")]) == 0
    monkeypatch.delenv("SLURM_PROCID")
    status, lines = call()
    assert any(f": {16 - len(lacking)} of the plan's 16 images" in line for line in lines)
    assert present(tmp_path, plan) == 16


def store_of(folder):
    with Store(folder, readonly=True) as store:
        return {key for _, key in store.tail()}


@pytest.mark.slow
def test_fine_tuning_comes_first_where_it_is_due(call, tmp_path):
    status, lines = call(finetune={"enabled": True})
    assert status == 0
    assert any(line.startswith("fine-tuning the generator: 2/2") for line in lines)
    assert lines[-1].startswith(f"cache {tmp_path}/cache: 16 of the plan's 16 images, ")


@pytest.mark.slow
def test_a_whole_plan_is_said_and_no_model_is_loaded(call, monkeypatch):
    call()
    monkeypatch.delattr(ImageGenerator, "load")
    status, lines = call()
    assert status == 0
    assert "16 of the plan's 16 images" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_a_signal_ends_it_after_storing_what_is_finished_and_the_next_call_makes_the_rest(
    call, plan, tmp_path, monkeypatch, number
):
    told = []

    class Impatient(filling.FillDisplay):
        def tell(self, status):
            super().tell(status)
            told.append(status)
            if status.state == "generating" and len(told) == 1:
                os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(filling, "FillDisplay", Impatient)
        status, lines = call()
    assert status == 128 + number
    assert lines[-1] == "interrupted: the same command goes on"
    assert 0 < present(tmp_path, plan) == told[-1].generated < len(plan)
    with Store(tmp_path / "cache", readonly=True) as store:
        assert store.stats()["claims_live"] == 0
    assert call()[0] == 0
    assert present(tmp_path, plan) == len(plan)


def test_what_is_rejected_is_said_with_its_reason(tmp_path):
    bar = Tally("filling", 10)
    with Store(tmp_path / "cache") as store:
        nobody = filling.FillDisplay(bar, store, None, reused_before=4)
        reasons = {"white": 2, "off-class": 1}
        nobody.tell(
            Status(
                state="generating",
                generated=3,
                rejected=3,
                rejected_by_reason=reasons,
                reused=5,
                images_per_s=2.5,
            )
        )
    assert bar.done == 7
    assert bar.note == "2.5 images/s, rejected: 1 off-class, 2 white, 0 B"


@pytest.mark.slow
def test_a_cache_that_is_full_is_one_line_and_loses_nothing_of_the_plan(call, plan, tmp_path):
    message = r"^cache\.path must have room for the plan, .* full after \d+ of 16 images; [^\n]*$"
    with pytest.raises(UserError, match=message):
        call(cache={"codec": "raw", "max_gib": 100_000 / 2**30})
    assert 0 < present(tmp_path, plan) < len(plan)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"mixing": {"synthetic_probability": 0}},
            "mixing.synthetic_probability must be above 0 to fill a cache, got 0",
        ),
        (
            {"mixing": {"imported": "only"}},
            "mixing.imported must be null or beside to fill a cache, got only",
        ),
        (
            {"devices": {"generate": "none"}},
            "devices.generate must be auto or a device to fill a cache, got none",
        ),
        (
            {"devices": {"generate": ["cpu", "cpu"]}},
            "devices.generate must be one device to fill a cache, got cpu, cpu; "
            "start a fill for each, they share the plan",
        ),
        (
            {
                "method": {"name": "sgd_mix", "candidates": [1, 2]},
                "saliency": {"teacher": "classifier"},
            },
            "saliency.teacher must be a file of weights, or saliency.method one that needs no "
            "training, to fill a cache ahead of it, got the classifier in training",
        ),
    ],
)
@pytest.mark.parametrize("switches", [[], ["--print-speed"]])
def test_what_cannot_be_made_ahead_is_one_clear_line(call, sections, message, switches, tmp_path):
    with pytest.raises(UserError) as caught:
        call(*switches, **sections)
    assert str(caught.value) == message
    assert not (tmp_path / "cache").exists()


def test_images_are_made_ahead_for_a_share_that_only_grows_from_none(tmp_path, tiny_model):
    mixing = {"synthetic_probability": 0, "final_probability": 0.5}
    command.check_fillable(make_config(tmp_path, tiny_model, mixing=mixing))


@pytest.mark.parametrize("method", ["spectral_residual", "diffusion"])
def test_maps_that_need_no_classifier_are_made_before_the_images(call, tmp_path, method):
    sgd_mix = {"name": "sgd_mix", "candidates": [1, 2], "min_source_share": 0}
    status, lines = call(saliency={"method": method, "mask": "otsu"}, method=sgd_mix)
    assert status == 0
    with Store(tmp_path / "cache", readonly=True) as store:
        assert store.stats()["saliency_maps"] == 8
    assert "of the plan's 16 images" in lines[-1]


@pytest.mark.slow
def test_the_speed_is_measured_without_a_cache(call, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SPEED_S", 0.0)
    status, lines = call("--print-speed")
    assert status == 0
    assert "images/s" in lines[-1]
    assert "the 16 of the plan take" in lines[-1]
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_the_speed_is_known_before_fine_tuning(call, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SPEED_S", 0.05)
    status, lines = call("--print-speed", finetune={"enabled": True})
    assert status == 0
    assert "measured before fine-tuning, whose result is as fast" in lines
    assert "the 16 of the plan take" in lines[-1]
    assert not (tmp_path / "finetuned").exists()


@pytest.mark.slow
def test_an_image_server_makes_the_plan_and_its_speed_is_measured(
    call, tmp_path, monkeypatch, server
):
    monkeypatch.delattr(ImageGenerator, "load")
    monkeypatch.setattr(command, "SPEED_S", 0.05)
    asks = {
        "method": {"name": "diffusemix"},
        "generation": {"engine": "openai", "model": "editor-1"},
        "image_server": {"url": server.url},
    }
    status, lines = call("--print-speed", **asks)
    assert status == 0
    assert f"8 at a time, editor-1 at {server.url}); the 16 of the plan take" in lines[-1]
    status, lines = call(**asks)
    assert status == 0
    assert lines[-1].startswith(f"cache {tmp_path}/cache: 16 of the plan's 16 images, ")
    assert len(store_of(tmp_path / "cache")) == 16


@pytest.mark.slow
def test_a_server_that_is_busy_for_long_is_one_line_that_keeps_what_is_made(call, tmp_path, server):
    server.answers = [200] * 6 + [503] * 99
    with pytest.raises(UserError, match=r"^image_server\.url must be a server that is reachable"):
        call(
            method={"name": "diffusemix"},
            generation={"engine": "openai", "model": "editor-1"},
            image_server={"url": server.url, "concurrency": 1, "retries": 1},
        )
    assert len(store_of(tmp_path / "cache")) == 6
    with Store(tmp_path / "cache", readonly=True) as store:
        assert store.stats()["claims_live"] == 0


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert "usage: online-aug fill RECIPE [key.sub=value ...] [--print-speed]" in text
    assert "  online-aug fill cub_diff_mix --print-speed\n" in text
