"""Training that has diverged ends, and replaces nothing good."""

import json

import pytest
import torch
from classifier_samples import make_batch

from online_aug.errors import UserError
from online_aug.training.checkpoints import MARKER
from online_aug.training.divergence import (
    LOOK_EVERY_STEPS,
    MOST_SKIPPED,
    PATIENCE_STEPS,
    DivergenceWatch,
)

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


def state(engine):
    engine.gather()
    return {name: value.clone() for name, value in engine.evaluated_model().state_dict().items()}


def step(engine, seed, *, bad=None):
    """Train on the batch of a seed, with a label that is not finite at position `bad`."""
    batch = make_batch(seed)
    if bad is not None:
        batch.labels[bad] = float("nan")
    engine.train_step(batch)
    return engine.guard.was_skipped


SKIPS = {"skip_non_finite": True, "schedule": "constant", "warmup_epochs": 0, "accumulation": 2}


def skipping(zero, precision, **optim):
    deepspeed = {"zero_optimization": {"stage": zero}}
    classifier = {"precision": precision, "deepspeed": deepspeed}
    return {"classifier": classifier, "optim": {**SKIPS, **optim}}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("bad", [0, -1])  # in the first part of the batch, or in the last
def test_training_goes_on_as_if_a_bad_batch_had_never_been(make_engine, zero, precision, bad):
    sections = skipping(zero, precision, clip_grad=1.0)
    whole, skipping_one = make_engine(**sections), make_engine(**sections)
    for seed in (0, 1):
        assert not step(whole, seed)
        assert not step(skipping_one, seed)
        if seed == 0:
            scale = skipping_one.loss_scale.value
            assert step(skipping_one, 7, bad=bad)
            assert skipping_one.loss_scale.value == scale
    assert skipping_one.step == whole.step + 1
    expected = state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state(skipping_one).items())


def test_without_the_key_a_bad_batch_is_learned(make_engine):
    engine = make_engine()
    assert not step(engine, 0, bad=0)
    assert not engine.is_finite()


def test_a_loss_that_overflows_is_skipped_though_its_gradients_are_finite(make_engine):
    engine = make_engine(optim=SKIPS)
    with torch.no_grad():
        head = engine.evaluated_model().get_classifier()
        head.bias.copy_(torch.tensor([3e38, -3e38, 0.0]))
    before = state(engine)
    assert step(engine, 0)
    assert all(torch.equal(value, before[name]) for name, value in state(engine).items())


def test_gradients_that_are_not_finite_are_skipped_though_the_loss_is(make_engine):
    engine = make_engine(optim=SKIPS)
    weight = next(engine.evaluated_model().parameters())
    handle = weight.register_hook(lambda gradient: gradient * float("inf"))
    assert step(engine, 0)
    handle.remove()
    assert not step(engine, 0)
    assert engine.is_finite()


def test_the_average_of_weights_does_not_count_a_skipped_step(make_engine):
    engine = make_engine(optim=SKIPS | {"ema": 0.9})
    step(engine, 0)
    before = state(engine)
    step(engine, 1, bad=0)
    assert all(torch.equal(value, before[name]) for name, value in state(engine).items())


def test_running_losses_do_not_see_a_skipped_batch(make_engine):
    engine, seen = make_engine(optim=SKIPS), []
    engine.watch = lambda logits, labels: seen.append(labels)
    step(engine, 0, bad=0)
    assert seen == []
    step(engine, 1)
    assert len(seen) == SKIPS["accumulation"]


@pytest.mark.parametrize("zero", [0, 1])
def test_resuming_after_a_skipped_step_equals_never_having_stopped(make_engine, tmp_path, zero):
    sections = skipping(zero, "float32")
    engines = [make_engine(**sections) for _ in range(2)]
    for seed, bad in ((0, None), (1, 0)):
        step(engines[0], seed, bad=bad)
    engines[0].save(tmp_path, {})
    engines[1].load(tmp_path)
    for engine in engines:
        assert step(engine, 2, bad=1)
        assert not step(engine, 3)
    first, second = map(state, engines)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_too_many_skips_in_a_row_end_the_run(tmp_path):
    watch = DivergenceWatch(tmp_path, lr=0.05)
    watch.after_skips(30, MOST_SKIPPED - 1)
    with pytest.raises(UserError, match=r"20 steps in a row were skipped up to step 31"):
        watch.after_skips(31, MOST_SKIPPED)
