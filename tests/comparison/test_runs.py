"""The runs of a comparison: their folders, which are finished, and what they are without images."""

from dataclasses import replace

import pytest
from comparison_samples import VANILLA, finish, make_run

from online_aug.comparison.runs import Row, plan_runs, without_synthetic
from online_aug.config.loading import find_recipe, load_config
from online_aug.errors import UserError


def test_a_run_is_finished_after_its_last_epoch(tmp_path):
    run = make_run(tmp_path, "vanilla", 0, VANILLA)
    assert not run.is_finished
    finish(run, 0.5).check_room()
    assert run.is_finished
    longer = replace(run, overrides=(*run.overrides, "run.epochs=2"))
    assert not longer.is_finished


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path):
    run = finish(make_run(tmp_path, "vanilla", 0, VANILLA), 0.5)
    other = replace(run, overrides=(*run.overrides, "optim.lr=0.1"))
    with pytest.raises(UserError, match=r"another optim\.lr \(0\.005 there, 0\.1 now\); choose"):
        other.check_room()


def test_a_run_of_another_length_is_another_run(tmp_path):
    run = finish(make_run(tmp_path, "vanilla", 0, VANILLA), 0.5)
    with pytest.raises(UserError, match=r"another run\.epochs \(1 there, 2 now\)"):
        replace(run, overrides=(*run.overrides, "run.epochs=2")).check_room()


def test_how_images_are_made_does_not_matter_to_a_run_without_any(tmp_path):
    run = finish(make_run(tmp_path, "vanilla", 0, VANILLA), 0.5)
    replace(run, overrides=(*run.overrides, "method.strength=0.1")).check_room()
    run = finish(make_run(tmp_path, "augmented", 0), 0.5)
    with pytest.raises(UserError, match=r"has another method\.strength "):
        replace(run, overrides=(*run.overrides, "method.strength=0.15")).check_room()


def test_all_rows_of_a_seed_come_before_the_next_seed(tmp_path):
    rows = {"a": Row("pocket_birds", ()), "b+b": Row("pocket_birds_paste", ("optim.lr=1",))}
    runs = plan_runs(rows, range(3, 5), tmp_path, cuts=True)
    assert [(run.row, run.seed, run.folder.name) for run in runs] == [
        *(("a", 3, "a-seed3"), ("b+b", 3, "b_b-seed3")),
        *(("a", 4, "a-seed4"), ("b+b", 4, "b_b-seed4")),
    ]
    config = runs[-1].config
    assert (config.run.seed, config.data.seed, config.optim.lr) == (4, 4, 1)
    assert config.run.dir == tmp_path


@pytest.mark.parametrize(
    "keys",
    [
        ["mixing.synthetic_probability=0.4", "mixing.starvation=wait"],
        ["mixing.final_probability=0.9"],
        ["mixing.class_probability={wren: 0.5}"],
        ["mixing.imported=beside"],
    ],
)
def test_the_twin_has_no_synthetic_image(keys):
    config = load_config(find_recipe("pocket_birds_sgd_mix"), keys)
    twin = load_config(find_recipe("pocket_birds_sgd_mix"), [*keys, *without_synthetic(config)])
    assert not twin.mixing.is_synthetic
    assert twin.mixing.imported is None
    assert (twin.data, twin.optim, twin.classifier) == (
        config.data,
        config.optim,
        config.classifier,
    )


def test_the_twin_of_longer_epochs_goes_through_the_images_more_often():
    keys = ["mixing.policy=concat", "mixing.synthetic_probability=0.75", "data.epoch_repeats=2"]
    config = load_config(find_recipe("pocket_birds_sgd_mix"), keys)
    twin = load_config(find_recipe("pocket_birds_sgd_mix"), [*keys, *without_synthetic(config)])
    assert (twin.mixing.policy, twin.data.epoch_repeats) == ("global", 8)


def test_epochs_that_are_no_multiple_of_the_images_have_no_twin():
    keys = ["mixing.policy=concat", "mixing.synthetic_probability=0.3"]
    config = load_config(find_recipe("pocket_birds_sgd_mix"), keys)
    with pytest.raises(UserError, match=r"must be 0\.5 or another value .* got 0\.3$"):
        without_synthetic(config)
