"""The rules of methods that need no generator."""

import pytest

from online_aug.config.loading import load_config
from online_aug.errors import UserError

PASTING = ("method.name=paste", "saliency.method=spectral_residual")
BOTH = "method=[{name: paste, weight: 3}, {name: diff_mix}]"


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("devices.generate=cpu", "devices.generate must be auto or none with paste, {}cpu"),
        ("devices.generate=[cuda:0]", "devices.generate must be auto or none with paste, {}cuda:0"),
        ("mixing.max_times_sampled=2", "mixing.max_times_sampled must be null with paste, {}2"),
        ("mixing.samples_per_insert=2", "mixing.samples_per_insert must be null with paste, {}2.0"),
        ("mixing.imported=only", "mixing.imported must be null with paste, {}only"),
        ("schedule.priority=hard", "schedule.priority must be uniform with paste, {}hard"),
        ("schedule.image_weights=w", "schedule.image_weights must be null with paste, {}w"),
        ("gate.classifier=w.pt", "gate.classifier must be null with paste, {}w.pt"),
        ("gate.clip=clip", "gate.clip must be null with paste, {}clip"),
    ],
)  # fmt: skip
def test_a_key_of_generated_images_is_refused_without_a_generator(empty, override, said):
    with pytest.raises(UserError) as caught:
        load_config(empty, [*PASTING, override])
    assert str(caught.value) == said.format("which needs no generator, got ")
    load_config(empty, ["saliency.method=spectral_residual", BOTH, "mixing.max_times_sampled=2"])


def test_pasting_by_the_classifier_in_training_is_refused(empty):
    with pytest.raises(UserError, match="for paste, which composes from the first epoch on, got"):
        load_config(empty, ["method.name=paste", "saliency.teacher=classifier"])


@pytest.mark.parametrize(
    ("overrides", "planned", "composed"),
    [
        (("method.name=diff_mix",), True, False),
        (PASTING, False, True),
        ((PASTING[1], BOTH), True, True),
        ((*PASTING, "mixing.synthetic_probability=0"), False, False),
        (("method.name=diff_mix", "mixing.synthetic_probability=0"), False, False),
        (("method.name=diff_mix", "mixing.imported=only"), False, False),
    ],
)
def test_what_a_run_serves_decides_whether_it_needs_a_generator(
    empty, overrides, planned, composed
):
    config = load_config(empty, overrides)
    assert (config.is_planned, config.is_composed) == (planned, composed)
    assert config.needs_generator is planned
    assert not load_config(empty, [*overrides, "run.replay=runs/x"]).needs_generator


def test_paste_replaces_every_second_image_by_one_of_its_own(empty):
    mixing = load_config(empty, PASTING).mixing
    assert (mixing.policy, mixing.synthetic_probability) == ("local", 0.5)


def test_methods_that_generate_must_go_with_one_another_but_not_with_those_that_do_not(empty):
    several = "method=[{name: paste}, {name: diffusemix}]"
    load_config(empty, [PASTING[1], several])
    with pytest.raises(UserError, match="method must list methods for one kind of model"):
        load_config(empty, [PASTING[1], f"{several[:-1]}, {{name: sgd_mix}}]"])
