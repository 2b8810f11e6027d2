import pytest
import timm
import torch
from classifier_samples import CLASSES, make_batch

from online_aug.errors import UserError
from online_aug.training.schedule import learning_rate

FAST = {"lr": 0.01, "warmup_epochs": 0, "label_smoothing": 0}


def train(engine, steps, size=8):
    return [float(engine.train_step(make_batch(engine.step, size))) for _ in range(steps)]


def weights(engine):
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


@pytest.mark.parametrize("optim", [{"name": "adamw"}, {"momentum": 0}])
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


def test_clipping_through_deepspeeds_settings_bounds_the_step(make_engine):
    optim = {"name": "sgd", "momentum": 0, "lr": 1.0, "weight_decay": 0, "warmup_epochs": 0}
    engine = make_engine(optim=optim, classifier={"deepspeed": {"gradient_clipping": 0.01}})
    before = [p.detach().clone() for p in engine.evaluated_model().parameters()]
    train(engine, 1)
    after = engine.evaluated_model().parameters()
    moved = torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).norm()
    assert float(moved.detach()) == pytest.approx(0.01, rel=1e-3)


def test_autocast_keeps_the_weights_in_float32(make_engine):
    autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    engine = make_engine(classifier={"deepspeed": autocast})
    assert train(engine, 1)[0] > 0
    assert {p.dtype for p in engine.evaluated_model().parameters()} == {torch.float32}


def test_timm_loads_the_exported_average(make_engine, tmp_path):
    engine = make_engine(optim={"ema": 0.5})
    train(engine, 3)
    path = tmp_path / "model.safetensors"
    engine.export(path)
    loaded = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=path)
    assert_same_weights(loaded.state_dict(), weights(engine))


def test_a_wrong_value_among_deepspeeds_settings_is_one_line(make_engine):
    settings = {"zero_optimization": {"stage": 1, "reduce_bucket_size": "many"}}
    with pytest.raises(
        UserError, match=r"classifier\.deepspeed must be settings of DeepSpeed"
    ) as e:
        make_engine(classifier={"deepspeed": settings})
    assert "\n" not in str(e.value)
