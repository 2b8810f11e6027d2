import pytest
import torch
from tiny_model import copy_with

from online_aug.diffusion.adaptation import check_dtype, check_prediction
from online_aug.errors import UserError


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_cpu_trains_in_single_precision_and_bfloat16(name):
    check_dtype(name, "cpu")


def test_float16_on_a_cpu_is_refused_in_one_line():
    with pytest.raises(UserError, match="^finetune.dtype must be float32 or bfloat16 on cpu, got"):
        check_dtype("float16", "cpu")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_bfloat16_needs_a_gpu_that_has_it(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_dtype("float16", "cuda:0")
    if capability >= (8, 0):
        check_dtype("bfloat16", "cuda:0")
        return
    with pytest.raises(UserError, match="^finetune.dtype must be float32 or float16 on cuda:0"):
        check_dtype("bfloat16", "cuda:0")


@pytest.mark.parametrize("said", ["epsilon", "v_prediction"])
def test_a_model_of_noise_or_velocity_can_be_trained(tiny_model, tmp_path, said):
    check_prediction(copy_with(tiny_model, tmp_path / "m", "scheduler", prediction_type=said))


def test_a_model_of_clean_images_is_refused_in_one_line(tiny_model, tmp_path):
    model = copy_with(tiny_model, tmp_path / "m", "scheduler", prediction_type="sample")
    with pytest.raises(
        UserError, match="^generation.model must predict epsilon or v_prediction to be fine-tuned"
    ):
        check_prediction(model)
