"""The checks of `online-aug train`, and the libraries that it imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from classifier_samples import make_config

from online_aug.cli.train import check_training
from online_aug.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb", "lion", "nadamw", "lars"])
def test_optimizers_of_timm_are_taken(name):
    check_training(make_config(optim={"name": name}), ["cpu"])


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"optim": {"name": "adanw2"}}, "optim.name must be an optimizer of timm, got 'adanw2'; n"),
        ({"optim": {"name": "adahessian"}}, "optim.name must be an optimizer that needs first"),
        ({"optim": {"options": {"beta": 1}}}, "optim.name and optim.options must be an optimizer"),
        ({"optim": {"min_lr": 0.1}}, "optim.min_lr must be at most optim.lr, got 0.1 for 0.003"),
        ({"classifier": {"precision": "float16"}}, "classifier.precision must be float32 or bfl"),
        ({"classifier": {"name": "resnet_none"}}, "classifier.name must be a timm model, got"),
        ({"data": {"auto_augment": "never"}}, "data.auto_augment must be a policy of timm"),
    ],
)
def test_what_cannot_be_trained_is_one_line(sections, line):
    with pytest.raises(UserError) as caught:
        check_training(make_config(**sections), ["cpu"])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_batch_is_divided_by_the_ranks_of_all_nodes():
    message = r"^optim\.batch_size must be a multiple of the 3 training devices, got 8$"
    with pytest.raises(UserError, match=message):
        check_training(make_config(optim={"batch_size": 8}), ["cpu"], ranks=3)


GENERATOR_LIBRARIES = ("diffusers", "peft", "transformers")
WITHOUT_THEM = f"""
import sys

class Refused:
    def find_spec(self, name, path, target=None):
        assert name not in {GENERATOR_LIBRARIES}, f"the trainer imported {{name}}"

sys.meta_path.insert(0, Refused())
from online_aug.cli.main import main
main()
"""


@pytest.mark.slow
def test_a_trainer_never_imports_the_libraries_of_the_generator(tmp_path):
    small = ["data.examples_per_class=2", "data.epoch_repeats=1", "run.epochs=1"]
    small += ["finetune.enabled=false", "generation.num_inference_steps=2"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_THEM,
            "train",
            "digits_diff_mix",
            "optim.batch_size=10",
            *small,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits_diff_mix-seed0" / "summary.json").exists()
