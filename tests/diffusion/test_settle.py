"""Null defaults become what the model's own files say."""

import json
import shutil

import pytest
from experiment_samples import make_config

from online_aug.config import Config
from online_aug.diffusion.compatibility import settle
from online_aug.errors import UserError

UNSAID = {"resolution": None, "num_inference_steps": None}


def settled(config):
    made = settle(config).generation
    return made.resolution, made.num_inference_steps


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def model(tmp_path, tiny_model):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_side_and_steps_are_those_of_the_model(tmp_path, model):
    config = make_config(tmp_path, model, generation=UNSAID)
    assert settled(config) == (64, 25)
    edit(model / "unet/config.json", sample_size=24)
    edit(
        model / "scheduler/scheduler_config.json",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=False,
    )
    assert settled(config) == (96, 4)


def test_the_embedded_model_keeps_its_own_side():
    assert settled(Config()) == (64, 25)


def test_what_is_given_stays(tmp_path, model):
    config = make_config(tmp_path, model, generation={"resolution": 32, "num_inference_steps": 7})
    assert settle(config) is config


def test_without_generated_images_no_model_is_looked_for(tmp_path):
    config = make_config(
        tmp_path, "nobody/none", generation=UNSAID, mixing={"synthetic_probability": 0}
    )
    assert settled(config) == (512, 25)


def test_a_settled_configuration_is_checked_again(tmp_path, model):
    edit(
        model / "scheduler/scheduler_config.json",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=False,
    )
    method = {"name": "diff_mix", "strength": 0.2}
    config = make_config(tmp_path, model, generation=UNSAID, method=method)
    with pytest.raises(UserError, match=r"must be at least 1, got 0.2 \* 4"):
        settle(config)


def test_a_model_that_does_not_say_its_side_is_named(tmp_path, model):
    edit(model / "unet/config.json", sample_size=None)
    with pytest.raises(UserError, match="generation.resolution must be given for .*sample_size"):
        settle(make_config(tmp_path, model, generation=UNSAID))
