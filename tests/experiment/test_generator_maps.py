"""Maps by an experiment's own generator: their prompts and names, and what is refused."""

from functools import partial

import pytest
from experiment_samples import make_sgd_mix_experiment
from tiny_model import copy_with

from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError
from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.experiment.saliency import check_saliency
from online_aug.training.describe_run import describe_run


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    made = partial(make_sgd_mix_experiment, tmp_path, tiny_model)
    return partial(made, teacher=None, method="diffusion")


def with_sections(experiment, **sections):
    """Return the experiment with keys of some sections changed."""
    config = experiment.config
    changed = {
        name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()
    }
    return type(experiment)(config.model_copy(update=changed), experiment.splits, experiment.device)


@pytest.mark.parametrize(
    ("saliency", "metaclass", "prompts"),
    [
        ({}, "bird", ("a photo of a bird",) * 2),
        ({}, "", ("a photo of a crow", "a photo of a jay")),
        ({"prompt": "a bird"}, "bird", ("a bird",) * 2),
    ],
)
def test_the_prompt_names_what_all_classes_are(experiment_of, saliency, metaclass, prompts):
    experiment = with_sections(experiment_of(**saliency), data={"metaclass": metaclass})
    assert experiment.saliency.by_generator.prompts == prompts


@pytest.mark.parametrize(
    "sections",
    [
        {"saliency": {"prompt": "a bird"}},
        {"saliency": {"timesteps": (0.4,)}},
        {"saliency": {"draws": 4}},
        {"generation": {"dtype": "bfloat16"}},
        {"generation": {"resolution": 32}},
        {"data": {"metaclass": "crow"}},
    ],
)
def test_whatever_decides_a_map_decides_its_version(experiment_of, sections):
    experiment = experiment_of()
    assert with_sections(experiment, **sections).saliency.version != experiment.saliency.version


def test_what_decides_images_alone_leaves_the_version(experiment_of):
    experiment = experiment_of()
    others = {"generation": {"guidance_scale": 3.0, "seed": 5}, "method": {"max_draws": 2}}
    assert with_sections(experiment, **others).saliency.version == experiment.saliency.version


def test_a_dry_run_says_what_the_maps_cost_and_they_are_made_once(experiment_of):
    experiment = experiment_of()
    devices = plan_devices(experiment.config.devices)
    due = "saliency   diffusion of 8 images, made at the start, 4 calls of the network for each"
    assert due in describe_run(experiment, devices)
    ensure_saliency(experiment)
    assert experiment.has_maps
    assert "saliency" not in describe_run(experiment, devices)
    assert {request.saliency_version for request in experiment.plan} == {
        experiment.saliency.version
    }


def test_a_consistency_model_is_refused(experiment_of, tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "lcm", "unet", time_cond_proj_dim=32)
    experiment = with_sections(experiment_of(), generation={"model": str(model)})
    with pytest.raises(UserError, match=r"^saliency\.method must be another than diffusion .*lcm"):
        check_saliency(experiment)


def test_an_editor_is_refused(experiment_of, tiny_editor):
    experiment = experiment_of()
    experiment.diffusion.__dict__["model"] = tiny_editor  # no method of its kind has foregrounds
    with pytest.raises(UserError, match=r"^saliency\.method must be .* an InstructPix2Pix"):
        check_saliency(experiment)


def test_tokens_that_are_never_learned_are_refused(experiment_of):
    with pytest.raises(UserError, match=r"^saliency\.finetuned must be false"):
        check_saliency(experiment_of(finetuned=True))
