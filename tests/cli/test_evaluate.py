import json
import shutil

import numpy as np
import pytest
from classifier_samples import make_config
from PIL import Image
from rich.console import Console
from run_records import evaluation

from online_aug.classifier.class_names import BEST_FILE, MODEL_FILE
from online_aug.classifier.evaluation import evaluate
from online_aug.classifier.model import build_classifier
from online_aug.cli.evaluate import _print as print_result
from online_aug.cli.evaluate import main
from online_aug.config.loading import resolved_yaml
from online_aug.data.sources import load_splits
from online_aug.errors import UserError
from online_aug.files import write_atomically


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory as training leaves it, and what training measured."""
    import safetensors.torch

    root = tmp_path_factory.mktemp("finished")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("first", "second"):
            (root / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                noise = rng.integers(256, size=(24, 24, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / "images" / split / name / f"{number}.png")
    config = make_config(data={"source": str(root / "images"), "image_size": 32})
    classifier = build_classifier(config.classifier, 2, seed=3)
    run = root / "run"
    run.mkdir()
    (run / "config.yaml").write_text(resolved_yaml(config))
    write_atomically(run / MODEL_FILE, safetensors.torch.save(classifier.state_dict()))
    return run, evaluate(classifier, load_splits(config.data).test, config.data, "cpu")


def test_a_run_directory_gives_the_figures_that_training_measured(finished, capsys):
    run, expected = finished
    main([str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == expected.top1
    assert found["per_class"] == expected.per_class
    assert found["top5"] == expected.top5
    assert found["loss"] == pytest.approx(expected.loss)


def test_a_configuration_finds_its_run_directory(finished, capsys):
    run, expected = finished
    overrides = [f"run.dir={run.parent}", f"run.name={run.name}"]
    main([str(run / "config.yaml"), *overrides, "--json"])
    assert json.loads(capsys.readouterr().out)["top1"] == expected.top1


def test_the_table_names_every_class(finished, capsys):
    main([f"{finished[0]}/"])
    out = capsys.readouterr().out
    assert "first" in out
    assert "second" in out
    assert f"{100 * finished[1].top1:.1f} %" in out


def test_of_many_classes_the_worst_the_best_and_a_line_are_printed(capsys):
    confusion = {f"class {n:05d}": {f"class {n:05d}": n, "other": 2000 - n} for n in range(1, 1001)}
    print_result(evaluation(confusion), Console(width=100))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 90
    text = "\n".join(lines)
    assert "20 worst of class" in text
    assert "20 best of class" in text
    assert "1,000 classes: median 25.0 %, 0 at 90 % or more, 999 below 50 %" in text
    assert "commonest mistakes" in text
    assert "class 00021" not in text


def test_the_table_of_all_classes_is_written_where_it_is_wanted(finished, tmp_path, capsys):
    main([str(finished[0]), "--table", str(tmp_path / "classes.csv")])
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert {row.partition(",")[0] for row in rows} == {"class", "first", "second"}


def test_a_table_that_cannot_be_written_is_one_line_before_anything_is_judged(finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--table must be a folder that can be written, got"):
        main([str(finished[0]), "--table", str(tmp_path / "file" / "classes.csv")])


def test_a_run_without_a_model_is_one_line(finished):
    with pytest.raises(
        UserError, match=r"model\.safetensors must be the weights of a finished run"
    ):
        main([str(finished[0] / "config.yaml"), "run.name=never_trained"])


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"must hold config\.yaml"):
        main([str(tmp_path)])


def test_the_best_on_validation_is_judged_if_it_is_asked_for(finished, capsys, tmp_path):
    run, expected = finished
    again = shutil.copytree(run, tmp_path / "run")
    (again / MODEL_FILE).rename(again / BEST_FILE)
    main([str(again), "--best", "--json"])
    assert json.loads(capsys.readouterr().out)["top1"] == expected.top1


def test_the_best_of_a_run_without_validation_is_refused_in_one_line(finished):
    with pytest.raises(UserError, match=r"^--best must be left out for a run without valid") as no:
        main([str(finished[0]), "--best"])
    assert "\n" not in str(no.value)


def test_disturbed_images_are_judged_too(finished, capsys):
    run, expected = finished
    main([str(run), "--attack", "pgd", "--epsilon=64/255", "--corruptions=noise,JPEG", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == expected.top1
    assert set(found["disturbed"]) == {"PGD 64/255", "noise", "JPEG"}
    assert found["disturbed"]["PGD 64/255"] <= expected.top1
    main([str(run), "--corruptions"])
    assert "brightness" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--corruptions=nois"], r"--corruptions must name some of noise, .* got nois.* noise"),
        (["--attack=fgsm", "--epsilon=8/0"], r"--epsilon must be above 0 .* got 8/0$"),
        (["--attack=fgsm", "--epsilon=8"], r"--epsilon must be above 0 and at most 1, .* got 8$"),
        (["--epsilon=8/255"], r"--epsilon must come with --attack, got 8/255 alone$"),
        (["--attack=bim"], r"argument --attack: invalid choice: 'bim'"),
    ],
)
def test_a_disturbance_that_is_not_known_is_one_line(finished, options, said):
    with pytest.raises(UserError, match=said) as caught:
        main([str(finished[0]), *options])
    assert "\n" not in str(caught.value)
