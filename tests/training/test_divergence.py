"""Training that has diverged ends, and replaces nothing good."""

import json

import pytest
import torch
from classifier_samples import make_batch

from online_aug.errors import UserError
from online_aug.training.checkpoints import MARKER
from online_aug.training.divergence import LOOK_EVERY_STEPS, PATIENCE_STEPS, DivergenceWatch

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def watched(folder, losses):
    watch = DivergenceWatch(folder, lr=0.05)
    for step, loss in enumerate(losses, 1):
        watch.after_step(step, loss)


def test_a_few_steps_without_a_finite_loss_are_no_divergence(tmp_path):
    few = [GOOD, *[BAD] * (PATIENCE_STEPS - 1)]
    watched(tmp_path, [*few, GOOD] * LOOK_EVERY_STEPS)


@pytest.mark.parametrize("is_saved", [False, True])
def test_losses_that_stay_not_finite_end_the_run_and_name_the_last_checkpoint(tmp_path, is_saved):
    path = tmp_path / "checkpoints" / "step_00000004"
    if is_saved:
        path.mkdir(parents=True)
        (path / MARKER).write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"^optim\.lr must let training converge, got 0\.05: ") as e:
        watched(tmp_path, [torch.tensor(float("inf"))] * LOOK_EVERY_STEPS)
    last = f"checkpoint is {path}" if is_saved else "no checkpoint was written before"
    assert str(e.value).endswith(last)


@pytest.mark.parametrize("sections", [{}, {"optim": {"ema": 0.5}}])
def test_weights_that_are_not_finite_are_seen(make_engine, sections):
    engine = make_engine(**sections)
    engine.train_step(make_batch(0))
    assert engine.is_finite()
    with torch.no_grad():
        next(engine.evaluated_model().parameters()).view(-1)[0] = float("inf")
    assert not engine.is_finite()
