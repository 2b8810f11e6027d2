"""The comparison of methods: its rows, on the data of a block or as overrides of a recipe."""

import pytest
from comparison_samples import VANILLA, finish, make_run

from benchmarks import accuracy
from online_aug.config.loading import find_recipe, load_config
from online_aug.errors import UserError


def rows_of(*argv):
    options = accuracy._options(argv)
    return {name: accuracy._row(options, kind) for name, kind in accuracy._kinds(options).items()}


def config_of(row):
    return load_config(find_recipe(row.recipe), row.overrides)


def test_a_row_of_ones_own_may_begin_with_one_that_has_a_name():
    rows = rows_of("birds", "--row", "weak", "sgd_mix", "method.strength=0.1")
    assert config_of(rows["weak"]).methods[0].strength == (0.1,)


def test_overrides_may_follow_the_methods():
    options = accuracy._options(["birds", "--methods", "vanilla", "paste", "optim.lr=0.1"])
    assert (options.methods, options.overrides) == (["vanilla", "paste"], ["optim.lr=0.1"])
    assert options.block == "birds"
    options = accuracy._options(["birds", "--seeds", "1", "optim.lr=0.1"])
    assert (options.block, options.overrides) == ("birds", ["optim.lr=0.1"])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["birds", "--methods", "pasta"], "must be some of vanilla, .* got pasta"),
        (["bird"], "the block must be one of digits5, .* got bird$"),
        ([], "either a block .* or --recipe must be given"),
        (["birds", "--recipe", "pocket_birds"], "either a block .* or --recipe must be given"),
    ],
)
def test_a_wrong_name_is_one_line(argv, line):
    with pytest.raises(UserError, match=line):
        accuracy._options(argv)


@pytest.mark.parametrize("block", accuracy.BLOCKS)
def test_every_row_of_a_block_differs_from_vanilla_in_nothing_but_its_method(block):
    rows = rows_of(block)
    vanilla = config_of(rows.pop("vanilla"))
    for name, row in rows.items():
        config = config_of(row)
        data = config.data.model_copy(update={"auto_augment": None, "metaclass": "bird"})
        optim = config.optim.model_copy(update={"mixup": None, "cutmix": None})
        assert data == vanilla.data.model_copy(update={"metaclass": "bird"}), name
        assert (config.classifier, optim) == (vanilla.classifier, vanilla.optim), name
        assert config.run == vanilla.run, name


def test_what_real_rows_have_is_added_to_another():
    rows = rows_of("birds20", "--methods", "sgd_mix+cutmix", "cutmix", "randaugment")
    mixed = config_of(rows["sgd_mix+cutmix"])
    assert (mixed.methods[0].name, mixed.optim.cutmix) == ("sgd_mix", 1)
    assert mixed.mixing.is_synthetic
    assert not config_of(rows["cutmix"]).mixing.is_synthetic
    assert config_of(rows["randaugment"]).data.auto_augment == "rand-m9-mstd0.5-inc1"


def test_rows_of_long_tails_are_vanilla_but_for_their_loss_or_mixer():
    names = ("balanced_softmax", "drw", "ldam+drw", "cmo+drw")
    found = {
        name: config_of(row) for name, row in rows_of("digits_tail", "--methods", *names).items()
    }
    losses = {name: config.optim.loss for name, config in found.items()}
    plain = "cross_entropy"
    assert losses == dict(zip(names, ("balanced_softmax", plain, "ldam", plain), strict=True))
    assert [config.optim.reweight_after for config in found.values()] == [None, 24, 24, 24]
    assert found["cmo+drw"].optim.cmo == 1
    assert not any(config.mixing.is_synthetic for config in found.values())


def test_a_vanilla_row_stays_vanilla_whatever_holds_for_all_rows():
    rows = rows_of("birds", "mixing.synthetic_probability=0.9", "--methods", "vanilla", "diff_mix")
    assert not config_of(rows["vanilla"]).mixing.is_synthetic
    assert config_of(rows["diff_mix"]).mixing.synthetic_probability == 0.9


def test_rows_may_be_overrides_of_one_recipe():
    rows = rows_of("--recipe", "pocket_birds", "--methods", "vanilla", "recipe", "true_masks")
    assert {row.recipe for row in rows.values()} == {"pocket_birds"}
    assert config_of(rows["recipe"]).methods[0].name == "diff_mix"
    masks = config_of(rows["true_masks"])
    assert (masks.methods[0].name, masks.saliency.method) == ("paste", "masks")


def test_the_table_tells_steps_and_seeds(tmp_path):
    runs = [finish(make_run(tmp_path, "vanilla", seed, VANILLA), 0.5) for seed in range(2)]
    runs.append(finish(make_run(tmp_path, "recipe", 1), 0.75))
    lines = accuracy.table({run: run.outcome() for run in runs}, ["vanilla", "recipe"]).splitlines()
    assert lines[2].startswith("| vanilla | 2 | 50.0 ± 0.0 |")
    assert lines[3].startswith("| recipe | 1 | 75.0 | +25.0 |")
    assert lines[-1] == "5 optimizer steps in each run"


def test_pasting_fits_a_recipe_that_limits_how_often_an_image_is_served():
    rows = rows_of("--recipe", "quickstart", "--methods", "vanilla", "paste", "true_masks")
    for name in ("paste", "true_masks"):
        config = config_of(rows[name])
        assert (config.methods[0].name, config.mixing.max_times_sampled) == ("paste", None)
