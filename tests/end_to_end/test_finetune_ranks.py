"""The generator learns on two devices at once what it learns on one."""

import pytest
import torch
from experiment_samples import make_experiment
from safetensors.torch import load_file

from online_aug.cli import finetune
from online_aug.config.loading import resolved_yaml
from online_aug.finetuning import loop

pytestmark = pytest.mark.slow

SETTINGS = {
    **{"steps": 4, "batch_size": 3, "rank": 2, "lr": 1e-2, "token_lr": 1e-2},
    **{"min_snr_gamma": 5.0, "mode": "staged", "token_steps": 2, "checkpoint_steps": 3},
}


def tensors_of(experiment):
    return {
        name: value
        for path in experiment.diffusion.finetuned.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    """One device, then two of which neither has as many images a step as the other."""
    folder, experiments = tmp_path_factory.mktemp("ranks"), []
    for name, devices in (("one", "cpu"), ("two", "[cpu, cpu]")):
        experiment = make_experiment(
            folder, tiny_model, finetune={**SETTINGS, "path": folder / name}
        )
        path = folder / f"{name}.yaml"
        path.write_text(resolved_yaml(experiment.config))
        finetune.main([str(path), f"devices.generate={devices}"])
        experiments.append(experiment)
    return experiments


def test_two_devices_learn_what_one_learns(pair):
    one, two = map(tensors_of, pair)
    assert one.keys() == two.keys()
    assert len(one) > 1
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-3)
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_two_devices_leave_what_one_leaves(pair):
    for experiment in pair:
        assert {path.suffix for path in experiment.diffusion.finetuned.parent.iterdir()} == {
            "",
            ".lock",
        }
        assert not (experiment.diffusion.finetuned / loop.CHECKPOINTS).exists()
