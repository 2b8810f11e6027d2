"""A new user's first runs: what they leave, what they share, what is not done twice."""

import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    EPOCHS,
    IMAGES_AN_EPOCH,
    PLANNED,
    Launch,
    processes_of,
    read_metrics,
    read_summary,
    run_folder,
    start,
)

from cache import Store
from online_aug.reporting.metrics import SLOT_KINDS, TENSORBOARD_TAGS, Summary, summary_scalars

pytestmark = pytest.mark.slow

SERVED = ("served_real", "served_fresh", "served_cached", "starved")


@pytest.fixture(scope="module")
def folder(pair, config):
    """The run directory of the first seed."""
    return run_folder(config, "seed0")


def contents(folder):
    """Every file below with its time, which any write would change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_nothing_of_the_process_tree_is_left(pair, config):
    assert [processes_of(config.parent, f"seed{seed}") for seed in (0, 1)] == [[], []]


def test_the_configuration_is_there_with_every_default(folder):
    written = yaml.safe_load((folder / "config.yaml").read_text())
    method = {"name": "diff_mix", "strength": [0.5, 0.9], "gamma": 0.8}
    assert written["method"] | method == written["method"]
    assert written["cache"]["codec"] == "auto"


def test_the_environment_is_there_with_one_launch(folder):
    written = json.loads((folder / "environment.json").read_text())
    assert written["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert written["earlier_launches"] == []


def test_every_epoch_is_logged_and_accounts_for_every_slot(folder):
    epochs = read_metrics(folder)
    assert [epoch["epoch"] for epoch in epochs] == [*range(EPOCHS)]
    assert [epoch["step"] for epoch in epochs] == [12, 24, 36, 48]
    assert all(sum(epoch[name] for name in SERVED) == IMAGES_AN_EPOCH for epoch in epochs)
    assert all(0 <= epoch["val_top1"] <= 1 for epoch in epochs)
    assert epochs[-1]["cache_entries"] == PLANNED
    assert epochs[-1]["cache_bytes"] > 0
    assert epochs[-1]["lr"] < epochs[0]["lr"]


def test_tensorboard_has_every_figure_of_every_epoch(folder):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    expected = set(TENSORBOARD_TAGS.values()) - {"val/worst_group", "generator/rejected_for"}
    expected |= {f"share/{kind}" for kind in SLOT_KINDS}
    expected |= summary_scalars(Summary(**read_summary(folder))).keys()
    assert set(events.Tags()["scalars"]) == expected
    assert set(events.Tags()["images"]) == {"served/gallery", "test/confusion"}
    assert [event.step for event in events.Scalars("train/loss")] == [12, 24, 36, 48]


def test_the_ledger_tells_how_every_slot_was_filled(folder):
    parts = [np.load(path) for path in sorted((folder / "ledger").glob("*.npy"))]
    kinds = np.bincount(np.concatenate(parts)["kind"], minlength=4)
    summary = read_summary(folder)
    assert kinds.tolist() == [summary[name] for name in SERVED]
    assert [len(part) for part in parts] == [IMAGES_AN_EPOCH] * EPOCHS


def test_pictures_weights_and_checkpoints_are_there(folder):
    assert (folder / "gallery.png").stat().st_size > 10_000
    newest = (folder / "checkpoints" / "latest").read_text()
    assert (folder / "checkpoints" / newest / "complete.json").is_file()
    assert (folder / "best.safetensors").is_file()
    assert "<h1>seed0</h1>" in (folder / "report.html").read_text()


def test_the_summary_says_what_the_run_was_made_of(folder):
    summary = read_summary(folder)
    metrics = read_metrics(folder)
    assert summary["epochs"] == EPOCHS
    assert sum(summary[name] for name in SERVED) == EPOCHS * IMAGES_AN_EPOCH
    assert all(summary[name] == sum(epoch[name] for epoch in metrics) for name in SERVED)
    assert 0 < summary["first_step_s"] < summary["wall_s"]
    assert len(summary["per_class"]) == 10
    assert summary["generator_restarts"] == 0


def test_fresh_and_cached_are_both_served_and_nothing_starves_that_is_waited_for(folder):
    summary = read_summary(folder)
    assert summary["served_fresh"] > 0
    assert summary["served_cached"] > 0
    assert summary["starved"] == 0


def test_of_two_runs_at_once_none_makes_what_the_other_made(pair, config):
    with Store(config.parent / "cache", readonly=True) as store:
        keys = [key for _, key in store.tail()]
    made = [read_summary(run_folder(config, f"seed{seed}"))["generated"] for seed in (0, 1)]
    assert len(keys) == len(set(keys)) == sum(made) == PLANNED


def test_two_runs_at_once_fine_tune_once(pair, config):
    said = [out.count("fine-tuning the generator: 2/2") for out in pair]
    assert sorted(said) == [0, 1]
    files = [path for path in (config.parent / "finetuned").iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".lock"}


def test_evaluation_finds_the_accuracy_of_the_summary(folder):
    found = Launch("-m", "online_aug", "evaluate", folder, "--json").succeed()
    assert json.loads(found.out)["top1"] == read_summary(folder)["top1"]


def test_timm_loads_the_model(folder):
    path = folder / "model.safetensors"
    model = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(path))
    weights = safetensors.torch.load_file(path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_timm_loads_the_run_directory_with_names_and_preprocessing(folder):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert tuple(timm.data.resolve_model_data_config(model)["input_size"]) == (3, 32, 32)


def test_the_code_on_the_model_card_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (40, 30), 200).save("photo.jpg")
    card = (folder / "README.md").read_text()
    assert f"share of synthetic images | {100 * synthetic_share(folder):.1f} % of" in card
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), {})
    name, share = capsys.readouterr().out.split()
    assert name in map(str, range(10))
    assert 0.1 <= float(share) <= 1


def synthetic_share(folder):
    summary = read_summary(folder)
    served = [summary[name] for name in SERVED]
    return (served[1] + served[2]) / sum(served)


def test_the_same_command_again_says_so_and_does_nothing(folder, config):
    before = contents(folder)
    again = start(config, "seed0", "run.seed=0").succeed()
    assert contents(folder) == before
    assert f"{folder} was already finished on " in again.out
    assert again.out.count("\n") == 1


def test_another_seed_makes_nothing_that_is_there(pair, config):
    name = "seed2"
    substitutes = "mixing.starvation=substitute"
    said = start(config, name, "run.seed=2", "run.epochs=2", substitutes).succeed()
    summary = read_summary(run_folder(config, name))
    assert (summary["generated"], summary["served_fresh"], summary["starved"]) == (0, 0, 0)
    assert summary["served_cached"] > 0
    assert 0 < summary["reused"] <= PLANNED
    assert f"0 made, {summary['reused']} reused" in said.out


def test_a_run_without_synthetic_images_needs_no_generator(config):
    name, nothing = "vanilla", config.parent / "nothing"
    overrides = ["mixing.synthetic_probability=0", "run.epochs=1", f"finetune.path={nothing}"]
    start(config, name, "generation.model=/no/such/model", *overrides).succeed()
    assert read_summary(run_folder(config, name))["served_real"] == IMAGES_AN_EPOCH
    assert not nothing.exists()
    assert not (run_folder(config, name) / "generator.log").exists()


def test_a_run_that_diverges_is_one_line_and_saves_nothing_of_it(config):
    wishes = ["optim.lr=1e9", "optim.warmup_epochs=0", "mixing.synthetic_probability=0"]
    launch = start(config, "diverged", "finetune.enabled=false", *wishes)
    assert launch.wait() == 2
    assert launch.err.startswith("error: optim.lr must let training converge, got 1e+09: ")
    assert launch.err.count("\n") == 1
    assert not list(run_folder(config, "diverged").rglob("*.safetensors"))
    assert not list(run_folder(config, "diverged").glob("checkpoints/*/complete.json"))
