from types import SimpleNamespace

import pytest
import torch

from online_aug.generation.finetuning.loss import denoising_loss
from online_aug.generation.models import training_scheduler
from online_aug.seeding import numpy_rng, torch_rng


def oracle_loss(prediction, answers_with):
    """Loss of a network that knows the clean latents, trained for `prediction`."""
    clean = torch.randn(4, 4, 8, 8, generator=torch_rng(0))
    scheduler = training_scheduler(
        {"prediction_type": prediction, "beta_schedule": "scaled_linear"}
    )

    def unet(noisy, times, words):
        alpha = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return SimpleNamespace(sample={"epsilon": noise, "v_prediction": velocity}[answers_with])

    pipeline = SimpleNamespace(unet=unet, text_encoder=lambda ids: (ids.float(),))
    ids, labels = torch.zeros(3, 5, dtype=torch.int64), torch.tensor([0, 1, 2, 0])
    loss = denoising_loss(pipeline, scheduler, ids, (clean, labels), numpy_rng("test"))
    return float(loss)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_against_what_the_network_was_trained_to_predict(prediction):
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[prediction]
    assert oracle_loss(prediction, answers_with=prediction) < 1e-6
    assert oracle_loss(prediction, answers_with=other) > 0.1
