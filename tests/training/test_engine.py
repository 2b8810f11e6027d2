import math

import pytest
import timm
import torch
from classifier_samples import CLASSES, make_batch
from safetensors.torch import load_file

from online_aug.classifier.optim import learning_rate
from online_aug.errors import UserError
from online_aug.training.divergence import FIRST_SCALE, LEAST_SCALE

FAST = {"lr": 0.01, "warmup_epochs": 0, "label_smoothing": 0}


def train(engine, steps, size=8):
    return [float(engine.train_step(make_batch(engine.step, size))) for _ in range(steps)]


def weights(engine):
    engine.gather()
    return {name: value.clone() for name, value in engine.evaluated_model().state_dict().items()}


def assert_same_weights(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_the_loss_falls(make_engine):
    losses = train(make_engine(run={"epochs": 10}, optim=FAST), 20)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state(make_engine):
    options = {"optim": {"mixup": 0.4, "cutmix": 1.0}, "classifier": {"drop_rate": 0.3}}
    first = make_engine(**options)
    train(first, 3)
    torch.manual_seed(99)
    second = make_engine(**options)
    train(second, 3)
    assert_same_weights(weights(first), weights(second))


def test_training_leaves_the_global_random_state_alone(make_engine):
    engine = make_engine(classifier={"drop_rate": 0.3})
    before = torch.get_rng_state()
    train(engine, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_drops_other_units(make_engine):
    first, second = (
        make_engine(run={"seed": seed}, classifier={"drop_rate": 0.5}) for seed in (0, 1)
    )
    second.evaluated_model().load_state_dict(first.evaluated_model().state_dict())
    assert train(first, 1) != train(second, 1)


def test_an_odd_batch_is_trained_with_mixup(make_engine):
    engine = make_engine(optim={"batch_size": 5, "mixup": 0.4, "cutmix": 1.0})
    train(engine, 2, size=5)
    assert engine.step == 2


def test_each_step_uses_the_scheduled_rate(make_engine):
    engine = make_engine(run={"epochs": 2}, optim={"lr": 0.1, "warmup_epochs": 1})
    for step in range(8):
        expected = learning_rate(engine._config.optim, step, total_steps=8, steps_per_epoch=4)
        assert engine.lr == expected
        train(engine, 1)
        assert {group["lr"] for group in engine._engine.optimizer.param_groups} == {expected}


def test_weight_decay_spares_biases_and_norms(make_engine):
    engine = make_engine(optim={"weight_decay": 0.5})
    for group in engine._engine.optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1)


def test_weight_decay_can_act_on_all_weights(make_engine):
    engine = make_engine(optim={"weight_decay": 0.5, "decays_all": True})
    assert {group["weight_decay"] for group in engine._engine.optimizer.param_groups} == {0.5}


@pytest.mark.parametrize(
    "optim",
    [
        {"name": "adamw"},
        {"momentum": 0},
        {"name": "momentum"},
        {"name": "lamb", "options": {"betas": [0.8, 0.9]}},
    ],
)
def test_other_optimizers_train(make_engine, optim):
    engine = make_engine(optim=optim)
    before = weights(engine)
    train(engine, 2)
    assert any(not torch.equal(v, before[k]) for k, v in weights(engine).items())


def test_the_average_of_weights_lags_by_its_decay(make_engine):
    plain, averaged = make_engine(), make_engine(optim={"ema": 0.9})
    name = "fc.weight"
    train(plain, 1)
    train(averaged, 1)
    first = weights(plain)[name]
    assert torch.equal(weights(averaged)[name], first)
    train(plain, 1)
    train(averaged, 1)
    expected = 0.9 * first + 0.1 * weights(plain)[name]
    torch.testing.assert_close(weights(averaged)[name], expected)


@pytest.mark.parametrize(
    "sections",
    [
        {"optim": {"ema": 0.5, "mixup": 0.4}, "classifier": {"drop_rate": 0.3}},
        {
            "optim": {"name": "adamw"},
            "classifier": {"deepspeed": {"zero_optimization": {"stage": 1}}},
        },
        {"classifier": {"deepspeed": {"zero_optimization": {"stage": 3}}, "drop_rate": 0.3}},
    ],
)
def test_resuming_equals_never_having_stopped(make_engine, tmp_path, sections):
    whole = make_engine(**sections)
    train(whole, 2)
    whole.save(tmp_path, {"epoch": 1})
    train(whole, 3)
    resumed = make_engine(**sections)
    assert resumed.load(tmp_path) == {"epoch": 1}
    assert resumed.step == 2
    train(resumed, 3)
    assert_same_weights(weights(whole), weights(resumed))


PLAIN = {"name": "momentum", "momentum": 0, "lr": 1.0, "weight_decay": 0, "warmup_epochs": 0}


def stage(number):
    return {"deepspeed": {"zero_optimization": {"stage": number}}}


def bucket(engine):
    return engine._engine._config.zero_config.reduce_bucket_size


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_no_more_room_is_set_aside_for_gradients_than_there_are(make_engine, zero):
    whole = make_engine().evaluated_model()
    numbers = sum(weight.numel() for weight in whole.parameters())
    assert bucket(make_engine(classifier=stage(zero))) == numbers


def test_the_room_for_gradients_can_be_configured(make_engine):
    settings = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}}
    assert bucket(make_engine(classifier={"deepspeed": settings})) == 1000


@pytest.mark.parametrize(("precision", "parts"), [("float32", 1), ("float32", 2), ("float16", 2)])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_clipping_bounds_the_step(make_engine, zero, precision, parts):
    engine = make_engine(
        optim=PLAIN | {"clip_grad": 0.01, "accumulation": parts},
        classifier=stage(zero) | {"precision": precision},
    )
    names = {name for name, _ in engine.evaluated_model().named_parameters()}
    before = weights(engine)
    train(engine, 1)
    after = weights(engine)
    moved = torch.stack([(after[name] - before[name]).norm() for name in names]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_batch_in_parts_gives_the_step_of_a_whole_one(make_engine, zero):
    no_batch_norm = {"name": "test_convnext"} | stage(zero)
    ends = []
    for parts in (1, 4):
        optim = {"name": "sgd", "lr": 0.05, "warmup_epochs": 0, "mixup": 0.4}
        engine = make_engine(optim=optim | {"accumulation": parts}, classifier=no_batch_norm)
        ends.append((train(engine, 3), weights(engine), engine.step))
    (losses, whole, steps), (losses_in_parts, in_parts, steps_in_parts) = ends
    assert losses == pytest.approx(losses_in_parts, rel=1e-4)
    assert steps == steps_in_parts == 3
    for name, value in whole.items():
        torch.testing.assert_close(value, in_parts[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_layers_far_from_the_head_learn_more_slowly(make_engine, zero):
    optim = {"name": "adamw", "lr": 0.01, "warmup_epochs": 0, "layer_decay": 0.5}
    engine = make_engine(optim=optim, classifier={"name": "test_vit"} | stage(zero))
    train(engine, 1)
    rates = {group["lr"] for group in engine._engine.optimizer.param_groups}
    assert max(rates) == pytest.approx(0.01)
    assert {round(math.log2(0.01 / rate)) for rate in rates} == {*range(len(rates))}
    assert len(rates) > 2


def test_the_head_alone_is_trained_and_nothing_else_moves(make_engine):
    engine = make_engine(classifier={"head_only": True, "drop_rate": 0.5}, optim={"lr": 0.1})
    before = weights(engine)
    train(engine, 2)
    moved = {k for k, value in weights(engine).items() if not torch.equal(value, before[k])}
    assert moved == {"fc.weight", "fc.bias"}


def test_dropout_before_a_head_trained_alone_drops(make_engine):
    losses = [
        train(make_engine(classifier={"head_only": True, "drop_rate": rate}), 1)
        for rate in (0.0, 0.9)
    ]
    assert losses[0] != losses[1]


def test_a_model_without_a_head_cannot_train_it_alone(make_engine):
    with pytest.raises(UserError, match=r"classifier\.head_only must be false for test_resnet"):
        make_engine(classifier={"head_only": True}, num_classes=0)


def test_channels_last_trains_the_same_network(make_engine):
    ends = []
    for channels_last in (False, True):
        engine = make_engine(classifier={"channels_last": channels_last}, optim=FAST)
        ends.append(train(engine, 3))
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
    layout = {p.is_contiguous(memory_format=torch.channels_last) for p in conv_weights(engine)}
    assert layout == {True}


def test_weights_with_the_channels_innermost_are_exported_as_others_are(make_engine, tmp_path):
    engine = make_engine(classifier={"channels_last": True})
    engine.export(tmp_path / "model.safetensors")
    exported = load_file(tmp_path / "model.safetensors")
    assert {name: value.tolist() for name, value in exported.items()} == {
        name: value.tolist() for name, value in weights(engine).items()
    }


def conv_weights(engine):
    return [p for p in engine.evaluated_model().parameters() if p.ndim == 4 and p.shape[2] > 1]


def float16(zero):
    return {"classifier": stage(zero) | {"precision": "float16"}}


def overflow(engine):
    """Do a step whose gradients are not finite."""
    batch = make_batch(engine.step)
    batch.labels.fill_(math.inf)
    engine.train_step(batch)
    return engine.loss_scale.after_step(engine.step)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_step_that_overflows_float16_is_skipped_and_told(make_engine, zero):
    engine = make_engine(**float16(zero))
    before = weights(engine)
    said = overflow(engine)
    assert said == "step 1 skipped, float16 overflowed: loss scale 32768, 1 so far"
    learned = {name for name, _ in engine.evaluated_model().named_parameters()}
    after = weights(engine)
    assert_same_weights({name: before[name] for name in learned}, after)
    train(engine, 1)
    assert engine.loss_scale.after_step(engine.step) is None


@pytest.mark.parametrize("zero", [0, 2])
def test_a_loss_that_overflows_at_every_scale_ends_the_run(make_engine, zero):
    engine = make_engine(**float16(zero))
    said = [overflow(engine) for _ in range(int(math.log2(FIRST_SCALE / LEAST_SCALE)))]
    assert said[-1] == "step 16 skipped, float16 overflowed: loss scale 1, 16 so far"
    with pytest.raises(UserError, match="even with the least scale of the loss, after 17 skipped"):
        overflow(engine)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_checkpoint_keeps_the_scale_of_a_float16_loss(make_engine, tmp_path, zero):
    engine = make_engine(**float16(zero))
    overflow(engine)
    train(engine, 1)
    engine.save(tmp_path, {})
    resumed = make_engine(**float16(zero))
    assert resumed.load(tmp_path) == {}
    assert resumed.loss_scale.value == 2**15
    train(resumed, 1)
    assert resumed.loss_scale.after_step(resumed.step) is None


def test_autocast_keeps_the_weights_in_float32(make_engine):
    engine = make_engine(classifier={"precision": "bfloat16"})
    assert train(engine, 1)[0] > 0
    assert {p.dtype for p in engine.evaluated_model().parameters()} == {torch.float32}


def test_timm_loads_the_exported_average(make_engine, tmp_path):
    engine = make_engine(optim={"ema": 0.5})
    train(engine, 3)
    path = tmp_path / "model.safetensors"
    engine.export(path)
    loaded = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=path)
    assert_same_weights(loaded.state_dict(), weights(engine))


def test_the_optimizer_s_state_may_lie_in_host_memory(make_engine):
    kept = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    losses = [train(make_engine(classifier={"deepspeed": given}), 3) for given in ({}, kept)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_wrong_value_among_deepspeeds_settings_is_one_line(make_engine):
    settings = {"zero_optimization": {"stage": 1, "reduce_bucket_size": "many"}}
    with pytest.raises(
        UserError, match=r"classifier\.deepspeed must be settings of DeepSpeed"
    ) as e:
        make_engine(classifier={"deepspeed": settings})
    assert "\n" not in str(e.value)
