import math
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cache.codecs import CODECS
from online_aug.config import Config
from online_aug.config.loading import config_digest, load_config, resolved_yaml
from online_aug.config.schema import allowed, describe, fields, methods_with, shown
from online_aug.config.sections import CacheConfig
from online_aug.errors import UserError
from online_aug.methods import METHODS


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "empty.yaml"
    path.touch()
    return path


def written(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_lines(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value).split("\n")


def kinds(field):
    """Return the JSON types that a key takes at its top level."""
    return {branch["type"] for branch in field.get("anyOf", [field])}


def fields_of_kind(kind):
    return [dotted for dotted, field in fields().items() if kind in kinds(field)]


def taking(dotted):
    """Overrides that name a method which takes this key, if it is one of `method`."""
    section, key = dotted.split(".")
    if section != "method":
        return []
    return [f"method.name={methods_with(key)[0]}", "saliency.method=spectral_residual"]


def value_of(config, dotted):
    section, name = dotted.split(".")
    return getattr(getattr(config, section), name)


def test_an_empty_file_gives_the_defaults(empty):
    assert load_config(empty, []) == Config()


def test_the_command_line_beats_the_file_and_the_file_beats_the_default(tmp_path):
    path = written(tmp_path, "run: {seed: 1, epochs: 7}")
    config = load_config(path, ["run.seed=2"])
    assert (config.run.seed, config.run.epochs) == (2, 7)
    assert config.run.resume is Config().run.resume


def test_a_method_s_presets_beat_the_defaults(empty):
    config = load_config(empty, ["method.name=da_fusion"])
    assert config.method.strength == (1, 0.75, 0.5, 0.25)
    assert (config.mixing.policy, config.mixing.synthetic_probability) == ("local", 0.5)
    assert config.generation.variants_per_image == 10
    assert config.finetune.mode == "textual_inversion"


def test_the_file_and_the_command_line_beat_a_method_s_presets(tmp_path):
    path = written(tmp_path, "method: {name: da_fusion, strength: 0.5}\nfinetune: {mode: joint}")
    config = load_config(path, ["generation.variants_per_image=3"])
    assert (config.method.strength, config.finetune.mode) == ((0.5,), "joint")
    assert config.generation.variants_per_image == 3
    assert config.mixing.policy == "local"


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ([], (3e-3, 0.05)),
        (["optim.name=sgd"], (0.05, 5e-4)),
        (["classifier.pretrained=true"], (1e-3, 0.05)),
        (["classifier.checkpoint=x.safetensors", "optim.name=momentum"], (0.01, 5e-4)),
        (["classifier.pretrained=true", "classifier.head_only=true"], (3e-3, 0.05)),
        (["classifier.pretrained=true", "optim.lr=1", "optim.weight_decay=0"], (1, 0)),
    ],
)
def test_rates_that_nobody_set_suit_the_optimizer_and_the_weights(empty, overrides, rates):
    optim = load_config(empty, overrides).optim
    assert (optim.lr, optim.weight_decay) == rates


def test_presets_set_known_keys_to_other_values_than_the_defaults():
    for method in METHODS.values():
        for section, keys in method.presets.items():
            plain = Config().model_dump(mode="json")[section]
            assert all(plain[key] != value for key, value in keys.items())


@pytest.mark.parametrize("override", ["method.name=[1]", "mixing=3", "generation=null"])
def test_a_preset_hides_no_mistake(empty, override):
    (line,) = error_lines(empty, "method.name=da_fusion", override)
    assert f"got {shown(yaml.safe_load(override.partition('=')[2]))}" in line


def test_one_method_or_a_list_of_them_may_be_named(empty):
    one = load_config(empty, ["method.name=diff_aug"])
    listed = load_config(empty, ["method=[{name: diff_aug}, {name: diff_mix, weight: 0.5}]"])
    assert [method.name for method in one.methods] == ["diff_aug"]
    assert [(method.name, method.weight) for method in listed.methods] == [
        ("diff_aug", 1.0),
        ("diff_mix", 0.5),
    ]


def test_a_list_of_methods_survives_the_resolved_yaml(tmp_path, empty):
    config = load_config(empty, ["method=[{name: diff_mix, strength: 1e-1}, {name: diff_aug}]"])
    assert load_config(written(tmp_path, resolved_yaml(config))) == config


def test_of_several_methods_a_preset_sets_the_method_s_own_keys_alone(empty):
    config = load_config(empty, ["method=[{name: da_fusion}, {name: diff_mix}]"])
    assert [len(settings.strength) for settings in config.methods] == [4, 3]
    assert config.mixing == Config().mixing
    assert config.finetune == Config().finetune


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("[]", "method must be a section or a list of at least 1 such, got []"),
        ("[3]", "method[0] must be a section, a mapping of its keys, got 3"),
        ("[{}, {gamma: -1}]", "method[1].gamma must be a number > 0, got -1"),
        ("[{}, {gama: 1}]", "method[1].gama is no known key, got 1; did you mean method.gamma?"),
        (
            "[{name: sgd_mix, candidates: [5, 3]}]",
            "method.candidates must be fewest then most, got [5, 3]",
        ),
        ("[{strength: 0.01}]", "method.strength * generation.num_inference_steps must be at least"),
        ("[{name: diff_aug}, {name: diff_aug}]", "method must list each method once, got diff_aug"),
    ],
)
def test_a_mistake_in_a_list_of_methods_says_where_it_is(empty, value, line):
    (found,) = error_lines(empty, f"method={value}")
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (
            ("diff_mix", "diffusemix"),
            "method must list methods for one kind of model, got diff_mix (image_to_image) and ",
        ),
        (
            ("real_mix", "diff_aug"),
            "method must list methods for one model, got diff_aug, which fine-tunes it, and ",
        ),
        (
            ("diff_mix", "sgd_mix"),
            "saliency.teacher must be a file of weights, or saliency.method one that needs no ",
        ),
    ],
    ids=["models", "fine-tuning", "teacher"],
)
def test_methods_that_cannot_share_a_run_are_refused(empty, names, line):
    method = f"method=[{{name: {names[0]}}}, {{name: {names[1]}}}]"
    (found,) = error_lines(empty, method, "saliency.teacher=classifier")
    assert found.startswith(line)
    load_config(empty, [method, "mixing.synthetic_probability=0"])


def test_one_model_as_it_is_serves_methods_with_and_without_fine_tuning(empty):
    load_config(empty, ["method=[{name: real_mix}, {name: diff_aug}]", "finetune.enabled=false"])


def test_imported_images_are_refused_beside_several_methods(empty):
    overrides = ["method=[{name: diff_mix}, {name: diff_aug}]", "mixing.imported=only"]
    (line,) = error_lines(empty, *overrides)
    assert line.startswith("mixing.imported must be null if method lists several")


def test_of_two_overrides_of_one_key_the_last_holds(empty):
    assert load_config(empty, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_all_mistakes_of_file_and_command_line_come_at_once_one_line_each(tmp_path):
    path = written(tmp_path, "run: {epoch: 3}\noptim: {lr: -1}")
    lines = error_lines(path, "method.strength=2", "data.val_fraction=1", "nonsense", "run.name=[")
    assert len(lines) == 6
    for part in ("run.epoch ", "optim.lr ", "method.strength ", "data.val_fraction ", '"nonsense"'):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.seed=true", "run.seed must be a whole number >= 0 and < 4294967296, got true"),
        ("run.seed='3'", 'run.seed must be a whole number >= 0 and < 4294967296, got "3"'),
        ("run.resume=1", "run.resume must be true or false, got 1"),
        ("optim.lr=.inf", "optim.lr must be a number > 0, got Infinity"),
        ("optim.lr='0.1'", 'optim.lr must be a number > 0, got "0.1"'),
        ("optim.ema=1", "optim.ema must be a number > 0 and < 1, or null, got 1"),
        (
            "cache.codec=gif",
            'cache.codec must be one of auto, webp_lossless, png, raw, webp_lossy, jpeg, got "gif"',
        ),
        ("run.dir=null", "run.dir must be a path, got null"),
        ("data=3", "data must be a section, a mapping of its keys, got 3"),
        ("data=null", "data must be a section, a mapping of its keys, got null"),
        ("data.scale=[2, 1]", "data.scale must be smallest then largest, got [2.0, 1.0]"),
        ("=3", 'an override must be key.sub=value, got "=3"'),
        ("run.seed.x=3", None),
        ("run..seed=3", 'an override must be key.sub=value, got "run..seed=3"'),
    ],
)
def test_a_bad_value_is_named_with_its_path_and_what_is_allowed(empty, override, line):
    if line is None:
        line = "run.seed must be a whole number >= 0 and < 4294967296, got " + '{"x": 3}'
    assert error_lines(empty, override) == [line]


@pytest.mark.parametrize(
    ("value", "got"), [("0", "0"), ("2", "2"), ("[0.5, 0]", "[0.5, 0]"), ("[]", "[]")]
)
def test_a_strength_outside_its_range_is_refused_alone_or_in_a_list(empty, value, got):
    (line,) = error_lines(empty, f"method.strength={value}")
    assert line.startswith(
        "method.strength must be adaptive, or a number > 0 and <= 1, or a list of"
    )
    assert line.endswith(f"got {got}")


def test_one_strength_may_stand_for_a_list(empty):
    assert load_config(empty, ["method.strength=0.3"]).method.strength == (0.3,)


def test_no_training_device_is_refused(empty):
    (line,) = error_lines(empty, "devices.train=[]")
    assert line == "devices.train must be auto, or text, or a list of at least 1: each text, got []"


def test_a_list_that_may_be_empty_is_a_list(empty):
    (line,) = error_lines(empty, "run.trackers=[nonsense]")
    assert line.startswith("run.trackers must be a list: each one of tensorboard, wandb,")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("run.epoch=3", "run.epochs"),
        ("optim.learning_rate=1", None),
        ("epochs=3", "run.epochs"),
        ("optm.lr=1", "optim"),
        ("run.gamma=1", "method.gamma"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(empty, override, nearest):
    (line,) = error_lines(empty, override)
    assert "is no known key, got" in line
    if nearest:
        assert f"did you mean {nearest}?" in line


def test_an_unknown_key_is_answered_with_the_keys_of_its_section(empty):
    (line,) = error_lines(empty, "cache.size=3")
    assert line.endswith("cache takes path, max_gib, eviction, durability, codec")


def test_fractions_that_leave_nothing_to_train_on_are_refused(empty):
    (line,) = error_lines(empty, "data.val_fraction=0.5", "data.test_fraction=0.5")
    assert line.startswith("data.val_fraction + data.test_fraction must be below 1, got 0.5 + 0.5")


def test_a_strength_that_runs_no_step_is_refused(empty):
    overrides = ["generation.num_inference_steps=4", "method.strength=[0.25, 0.2]"]
    assert error_lines(empty, *overrides) == [
        "method.strength * generation.num_inference_steps must be at least 1, got 0.2 * 4"
    ]
    assert load_config(empty, [overrides[0], "method.strength=0.25"]).method.strength == (0.25,)


def test_a_consistency_model_begins_at_any_strength_that_it_knows(empty):
    few = ["generation.scheduler=lcm", "generation.num_inference_steps=4"]
    assert load_config(empty, [*few, "method.strength=0.02"]).method.strength == (0.02,)
    assert error_lines(empty, *few, "method.strength=0.01") == [
        "method.strength * the steps of generation.scheduler lcm must be at least 1, got 0.01 * 50"
    ]


def test_an_adapter_for_few_steps_needs_the_solver_it_was_distilled_for(empty):
    assert error_lines(empty, "generation.few_step_adapter=embedded") == [
        "generation.scheduler must be lcm with generation.few_step_adapter, got dpmsolver++"
    ]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("generation.guidance_scale=1", "generation.guidance_scale must be above 1 for diffusemix"),
        ("method.prompts=[]", "method.prompts must be a list of at least 1"),
        ("method.prompts=[snowy, ' ']", "method.prompts must be a list of at least 1"),
        ("method.template=snowy", "method.template must be text matching"),
        ("method.masks=[diagonal]", "method.masks must be a list of at least 1: each one of left,"),
        ("method.fractal_weight=1", "method.fractal_weight must be a number >= 0 and < 1"),
        ("method.prompt_choice=all", "generation.variants_per_image must be a multiple of the"),
    ],
)
def test_settings_that_diffusemix_cannot_use_are_refused(empty, override, part):
    (line,) = error_lines(empty, "method.name=diffusemix", override)
    assert line.startswith(part)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["class_balance=1", "policy=local"], "class_balance must be 0 unless mixing.policy is"),
        (["class_balance=1", "starvation=wait"], "class_balance must be 0 with mixing.starv"),
        (["policy=concat", "synthetic_probability=1"], "synthetic_probability must be below 1"),
        (["policy=local", "starvation=wait", "max_times_sampled=2"], "max_times_sampled must be"),
        (["policy=concat", "final_probability=0.5"], "final_probability and mixing.class_prob"),
        (["starvation=wait", "samples_per_insert=2"], "samples_per_insert must be null with"),
        (["samples_per_insert=4", "sampling_tolerance=3"], "sampling_tolerance must be at least"),
        (["imported=only", "starvation=wait"], "imported must be null with mixing.starvation wait"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(empty, overrides, part):
    (line,) = error_lines(empty, *(f"mixing.{override}" for override in overrides))
    assert line.startswith(f"mixing.{part}")


LDAM = ("optim.loss=ldam", "method.name=diff_aug")


def test_ldam_brings_the_head_and_the_hard_labels_that_it_needs(empty):
    found = load_config(empty, LDAM)
    assert (found.classifier.head, found.optim.label_smoothing) == ("cosine", 0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.name=diff_mix"], "optim.loss must be .* come from method.gamma of diff_mix, got"),
        (["optim.mixup=1", "optim.cutmix=1"], "optim.loss must .* optim.mixup and optim.cutmix,"),
        (["optim.label_smoothing=0.1"], "optim.loss must be .* come from optim.label_smoothing"),
        (["classifier.head=linear"], "classifier.head must be cosine with optim.loss ldam, .*lin"),
    ],
)
def test_ldam_is_refused_with_soft_labels_and_other_heads(empty, overrides, said):
    (line,) = error_lines(empty, *LDAM, *overrides)
    assert re.match(said, line)


def test_ldam_goes_with_soft_labels_of_a_method_that_serves_nothing(empty):
    chosen = ["method.name=diff_mix", "mixing.synthetic_probability=0", "optim.loss=ldam"]
    assert load_config(empty, chosen).optim.loss == "ldam"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim.mixup=1"], "optim.mixup and optim.cutmix must be null with optim.cmo"),
        (["run.epochs=7"], "run.epochs must be above 7 with optim.cmo, .* got 7"),
    ],
)
def test_cmo_is_refused_with_another_mixer_and_with_too_few_epochs(empty, overrides, said):
    (line,) = error_lines(empty, "optim.cmo=1", *overrides)
    assert re.match(said, line)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["schedule.stripe=2", "schedule.stripes=2"], "schedule.stripe must be below"),
        (["mixing.starvation=wait", "schedule.priority=hard"], "schedule.priority must be uniform"),
        (["mixing.starvation=wait", "schedule.helps=false"], "schedule.helps must be true with"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(empty, overrides, part):
    (line,) = error_lines(empty, *overrides)
    assert line.startswith(part)


def test_a_consistency_model_has_no_more_steps_than_it_was_distilled_for(empty):
    overrides = ["generation.scheduler=lcm", "generation.num_inference_steps=51"]
    assert error_lines(empty, *overrides) == [
        "generation.num_inference_steps must be at most 50 with generation.scheduler lcm, got 51"
    ]
    load_config(empty, ["generation.scheduler=lcm", "generation.num_inference_steps=50"])


def test_imports_cannot_stand_beside_plans_that_replace_one_another(empty):
    teacher = "saliency.teacher=classifier"
    (line,) = error_lines(empty, "method.name=sgd_mix", "mixing.imported=beside", teacher)
    assert line.startswith("mixing.imported must be null or only if saliency.teacher is")
    load_config(empty, ["method.name=sgd_mix", "mixing.imported=only"])


def test_all_prompts_may_be_asked_for_where_every_one_is_used(empty):
    overrides = ["method.name=diffusemix", "method.prompt_choice=all"]
    load_config(empty, [*overrides, "generation.variants_per_image=18"])


def test_deepspeeds_settings_may_be_in_a_file_of_their_own(tmp_path, empty):
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    config = load_config(empty, [f"classifier.deepspeed={path}"])
    assert config.classifier.deepspeed == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("{", "Expecting property name"), ("[1]", "got a list")],
)
def test_a_file_that_holds_no_settings_is_one_line(tmp_path, empty, content, reason):
    path = tmp_path / "deepspeed.json"
    if content is not None:
        path.write_text(content)
    (line,) = error_lines(empty, f"classifier.deepspeed={path}")
    assert line.startswith("classifier.deepspeed must be a mapping or a JSON file that holds one: ")
    assert reason in line


@pytest.mark.parametrize("dotted", fields_of_kind("number"))
def test_every_float_takes_an_exponent_without_a_dot(empty, dotted):
    # PyYAML reads these as text; one of the two is in the range of each of our floats.
    text = "1e1" if dotted.endswith("guidance_scale") else "5e-1"
    assert isinstance(yaml.safe_load(text), str)
    found = value_of(load_config(empty, [*taking(dotted), f"{dotted}={text}"]), dotted)
    assert found in (float(text), (float(text),), (float(text),) * 3)


@pytest.mark.parametrize("dotted", fields_of_kind("number"))
def test_every_float_takes_a_whole_number_or_says_its_range(empty, dotted):
    if "< 1," in f"{allowed(fields()[dotted])},":
        assert error_lines(empty, *taking(dotted), f"{dotted}=1")[0].endswith("got 1")
    else:
        found = value_of(load_config(empty, [*taking(dotted), f"{dotted}=1"]), dotted)
        assert found in (1.0, (1.0,), (1.0,) * 3)


@pytest.mark.parametrize("text", ["true", "'64'", "64.0", "6e1", "[64]"])
def test_no_whole_number_is_made_of_something_else(empty, text):
    wrong = [dotted for dotted in fields_of_kind("integer") if not taking(dotted)]
    lines = error_lines(empty, *(f"{dotted}={text}" for dotted in wrong))
    assert len(wrong) == len(lines) > 20
    for line in lines:
        assert re.match(r"[a-z_.]+ must be (auto, or )?a whole number", line)


@pytest.mark.parametrize("dotted", fields())
def test_null_is_taken_where_it_is_documented_and_nowhere_else(empty, dotted):
    overrides = [*taking(dotted), f"{dotted}=null"]
    if "null" in kinds(fields()[dotted]):
        assert value_of(load_config(empty, overrides), dotted) is None
    else:
        assert error_lines(empty, *overrides)[0].startswith(f"{dotted} must be ")


@pytest.mark.parametrize("name", ["1e4", "2024", "010", "1_000", "0x10", "no", "3.10"])
def test_text_that_looks_like_a_number_stays_text_in_a_text_field(empty, name):
    assert load_config(empty, [f"run.name={name}"]).run.name == name
    assert load_config(empty, [f"run.dir={name}"]).run.dir == Path(name)


@pytest.mark.parametrize("name", ["2024", "010", "no"])
def test_a_number_for_text_in_a_file_is_told_to_be_quoted(tmp_path, name):
    path = tmp_path / "numbered.yaml"
    path.write_text(f"run: {{name: {name}}}")
    (line,) = error_lines(path)
    assert line.startswith("run.name must be text ")
    assert line.endswith(", which YAML takes for no text: put it in quotes")


def test_a_date_is_text(empty):
    assert load_config(empty, ["run.dir=2026-01-31"]).run.dir == Path("2026-01-31")


def test_a_free_mapping_is_reached_by_a_longer_path(empty):
    config = load_config(empty, ["classifier.deepspeed.zero_optimization.stage=1"])
    assert config.classifier.deepspeed == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("run: {seed: 1, seed: 2}", "must be YAML: key seed is given twice (line 1, column 16)"),
        ("- a", 'must hold a mapping of sections, got ["a"]'),
        ("a: b: c", "must be YAML: mapping values are not allowed here"),
        ("run: {}\n---\nrun: {}", "must be YAML: but found another document"),
        ("run: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("run: !!binary aGk=", "could not determine a constructor"),
        ("run: &run {seed: *run}", "must be YAML: an alias must not stand for what it lies in"),
        ("on: {}", "must be YAML: a key must be text"),
        ('run: {name: "\\ud800"}', "must be YAML: "),
        ("\0", "must be YAML: unacceptable character"),
        ("[" * 1000, "must be YAML: "),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_one_line_that_names_it(tmp_path, text, part):
    path = written(tmp_path, text)
    (line,) = error_lines(path)
    assert line.startswith(f"{path} ")
    assert part in line


def test_a_missing_file_is_one_line(tmp_path):
    path = tmp_path / "none.yaml"
    assert error_lines(path) == [
        f"the first argument must be a YAML file, cannot read {path}: No such file or directory"
    ]


def test_a_folder_is_no_configuration_file(tmp_path):
    (line,) = error_lines(tmp_path)
    assert line.endswith(f"cannot read {tmp_path}: it is a folder, not a regular file")


def test_a_file_that_is_no_utf8_is_one_line(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"run: {name: \xe9}")
    (line,) = error_lines(path)
    assert line.endswith(f"cannot read {path}: it is not text in UTF-8 (byte 12)")


@given(text=st.text() | st.text("[]{}:,-&*!'\"\n \tae1.~?|>#%@"))
def test_any_text_as_override_is_answered_with_lines_and_no_other_error(empty, text):
    # The text alone and under `run` cannot both be right.
    lines = error_lines(empty, f"run={text}", f"run.name={text}", f"data.{text}=1", text)
    assert all(line.strip() for line in lines)


@given(
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(1e-300, 1e300),
    strengths=st.lists(st.floats(0.04, 1), min_size=1, max_size=4),  # of 25 steps, at least one
    word=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Z"))),
)
def test_the_resolved_yaml_reads_back_to_the_same_configuration(
    tmp_path_factory, seed, lr, strengths, word
):
    config = Config.model_validate(
        {
            "run": {"seed": seed},
            "optim": {"lr": lr},
            "method": {"strength": strengths},
            "data": {"metaclass": word},
        }
    )
    path = tmp_path_factory.mktemp("resolved") / "config.yaml"
    path.write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config(path, []) == config


def test_the_digest_ignores_the_order_of_the_file(tmp_path):
    one = load_config(written(tmp_path, "run: {seed: 1, epochs: 2}\noptim: {lr: 0.1}"), [])
    two = load_config(written(tmp_path, "optim: {lr: 1e-1}\nrun: {epochs: 2, seed: 1}"), [])
    assert config_digest(one) == config_digest(two)


@pytest.mark.parametrize("override", ["run.seed=1", "method.strength=0.5", "cache.max_gib=1"])
def test_the_digest_changes_with_a_value(empty, override):
    assert config_digest(load_config(empty, [override])) != config_digest(Config())


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().run.seed = 3


@pytest.fixture(scope="module")
def help_text():
    return " ".join(describe().split())


@pytest.mark.parametrize("dotted", fields())
def test_the_help_gives_every_key_its_default_and_its_meaning(empty, help_text, dotted):
    text, field = help_text, fields()[dotted]
    default = value_of(load_config(empty, taking(dotted)), dotted)
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    assert f" {dotted}=" in text
    assert " ".join(field["description"].split()) in text
    if isinstance(default, (bool, int, float)):
        assert f" {dotted}={shown} " in text
        assert math.isfinite(default)


def test_the_codecs_are_those_of_the_cache_and_auto():
    field = CacheConfig.model_fields["codec"]
    assert set(get_args(field.annotation)) == {"auto", *CODECS}


def test_a_key_of_another_method_is_refused_with_the_methods_that_take_it(empty):
    assert error_lines(empty, "method.name=sgd_mix", "method.seam=0.1") == [
        "method.seam is no key of sgd_mix but of diffusemix, got 0.1; sgd_mix takes name, weight, "
        "strength, tried_strengths, trials_per_class, min_accepted, source_filter, candidates, "
        "max_union_share, min_source_share, max_draws, keeps_foreground"
    ]


def test_a_method_named_on_the_command_line_keeps_those_keys_of_the_file_that_it_takes(tmp_path):
    path = written(tmp_path, "method: {name: diff_mix, strength: 0.6, gamma: 0.3}")
    assert load_config(path, ["method.name=sgd_mix"]).method.strength == (0.6,)
    assert load_config(path, ["method.name=diffusemix"]).method.name == "diffusemix"
    (line,) = error_lines(path, "method.name=diffusemix", "method.gamma=0.3")
    assert line.startswith(
        "method.gamma is no key of diffusemix but of diff_mix, real_mix, got 0.3"
    )


def test_a_mistake_in_the_file_stays_one_under_a_method_named_on_the_command_line(tmp_path):
    path = written(tmp_path, "method: {name: diff_mix, gama: 0.3}")
    (line,) = error_lines(path, "method.name=diffusemix")
    assert line.startswith("method.gama is no known key, got 0.3; ")


def test_a_method_that_does_not_exist_is_answered_with_those_that_do(empty):
    (line,) = error_lines(empty, "method.name=diffmix")
    assert line.startswith("method.name must be one of diff_mix, diff_aug, ")
    assert line.endswith(', or a class in a file such as my_method.py:NextClass, got "diffmix"')


def test_all_rules_between_keys_that_are_broken_are_told_at_once(empty):
    overrides = ["data.scale=[2, 1]", "schedule.stripe=2", "method.strength=0.01"]
    starts = ("data.scale must be", "schedule.stripe must be", "method.strength * generation.num")
    lines = error_lines(empty, *overrides)
    assert len(lines) == 3
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=1", "finetune.lr or optim.lr"),
        ("optim.learning_rate=1", "optim.lr"),
        ("learning_rate=1", "finetune.lr or optim.lr"),
        ("data.img_size=64", "data.image_size"),
        ("optm={}", "optim"),
    ],
)
def test_the_words_of_other_programs_lead_to_our_keys(override, meant):
    with pytest.raises(UserError, match=f"did you mean {re.escape(meant)}\\?"):
        load_config(Path("configs/digits_diff_mix.yaml"), [override])


def test_a_prompt_without_a_class_is_for_a_model_that_learns_none(empty):
    for name in ("real_gen", "real_guidance", "real_mix"):
        load_config(empty, [f"method.name={name}", "generation.prompt=a photo"])
    load_config(empty, ["generation.prompt=a photo", "finetune.enabled=false"])
    (line,) = error_lines(empty, "generation.prompt=a photo")
    assert line.startswith("generation.prompt must hold {class} with diff_mix, for which")
