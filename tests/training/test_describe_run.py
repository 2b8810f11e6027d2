"""A run says at its start, and in a dry run, what it is going to do with which images."""

import re

import pytest
from experiment_samples import make_experiment

from cache import CacheError
from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError
from online_aug.training.build_loader import check_sequence
from online_aug.training.describe_run import describe_run, describe_start


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    def make(**sections):
        experiment = make_experiment(
            tmp_path, tiny_model, **{"finetune": {"enabled": False}} | sections
        )
        return experiment, plan_devices(experiment.config.devices, cores=2)

    return make


def test_a_dry_run_counts_requests_steps_and_cached_images(experiment_of):
    experiment, devices = experiment_of()
    text = describe_run(experiment, devices)
    assert "8 train, 2 val, 2 test images of 2 classes (crow, jay)\n" in text
    assert "2 epochs of 2 steps of 4 images, 8 samples an epoch" in text
    assert "16 (8 sources x 2), each of 64 px in 4 steps" in text
    assert "disk       at most 192 KiB of images" in text
    assert "0 of them are there" in text
    assert "generate on cpu" in text


@pytest.mark.parametrize(
    ("starvation", "said"),
    [("wait", "each makes the whole plan"), ("substitute", "each makes its own part of the plan")],
)
def test_a_dry_run_says_what_each_of_several_machines_makes(experiment_of, starvation, said):
    experiment, devices = experiment_of(mixing={"starvation": starvation})
    (line,) = re.findall("^nodes .*", describe_run(experiment, devices, 3), re.M)
    assert line.startswith("nodes      3 training devices in all, 1 here; ")
    assert said in line


def test_a_cache_directory_that_is_empty_yet_holds_nothing(experiment_of, tmp_path):
    (tmp_path / "cache").mkdir()
    experiment, devices = experiment_of()
    assert "0 of them are there" in describe_run(experiment, devices)


def test_a_dry_run_changes_nothing(experiment_of, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    experiment, devices = experiment_of()
    describe_run(experiment, devices)
    after = [path for path in sorted(tmp_path.rglob("*")) if "images" not in path.parts]
    assert after == before


def test_a_description_before_fine_tuning_names_its_steps(experiment_of, tmp_path):
    experiment, devices = experiment_of(finetune={"path": tmp_path / "finetuned", "steps": 7})
    assert "fine-tune  joint, 7 steps of 2 images, result about " in describe_run(
        experiment, devices
    )


def test_a_run_without_synthetic_images_requests_none(experiment_of):
    experiment, devices = experiment_of(mixing={"synthetic_probability": 0})
    assert "requests   0 (" in describe_run(experiment, devices)


@pytest.mark.parametrize("describe", [describe_run, describe_start])
def test_classes_and_counts_are_said_before_anything_starts(experiment_of, tmp_path, describe):
    (tmp_path / "images").mkdir()
    experiment, devices = experiment_of(data={"source": "digits", "root": tmp_path / "data"})
    said = describe(experiment, devices)
    assert "1077 train, 270 val, 450 test images of 10 classes (0, 1, 2, 3, 4, ...)\n" in said


def test_the_embedded_model_on_other_images_and_a_missing_metaclass_are_told(experiment_of):
    experiment, devices = experiment_of(
        generation={"model": "embedded"}, data={"metaclass": ""}, finetune={"enabled": False}
    )
    said = describe_start(experiment, devices)
    assert "note       generation.model=embedded draws 64-px digits and birds" in said
    assert "mixing.synthetic_probability=0" in said
    assert 'data.metaclass is empty, so prompts read "a photo of a crow"' in said


def test_a_model_of_one_s_own_with_a_metaclass_needs_no_note(experiment_of):
    assert "note" not in describe_start(*experiment_of())


def test_a_batch_that_leaves_much_of_an_epoch_out_is_told(experiment_of):
    said = describe_start(*experiment_of(optim={"batch_size": 5}))
    assert "note       optim.batch_size=5 leaves 3 of 8 samples out of each epoch" in said


def test_a_batch_larger_than_an_epoch_is_refused(experiment_of):
    experiment, _ = experiment_of(optim={"batch_size": 9})
    with pytest.raises(UserError, match="optim.batch_size must be at most 8, the samples of an"):
        check_sequence(experiment, "")


def test_a_cache_path_that_holds_other_files_is_refused_before_a_dry_run(experiment_of, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    experiment, _ = experiment_of(cache={"path": tmp_path / "photos"})
    with pytest.raises(CacheError, match=r"new, empty or a cache.*mine.jpg"):
        experiment.check(generates=True)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.jpg"]
