import pytest
import torch
from classifier_samples import make_batch

from online_aug.errors import UserError
from online_aug.training import checkpoints


@pytest.fixture
def saved(make_engine, tmp_path):
    engine = make_engine()
    engine.train_step(make_batch(0))
    engine.save(tmp_path, {"epoch": 0})
    return tmp_path


def test_nothing_is_loaded_from_an_empty_folder(make_engine, tmp_path):
    assert make_engine().load(tmp_path / "none") is None


def test_the_newest_two_are_kept_and_latest_names_the_last(make_engine, tmp_path):
    engine = make_engine()
    for step in range(4):
        engine.train_step(make_batch(step))
        engine.save(tmp_path, {})
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000003", "step_00000004"]
    assert (tmp_path / "latest").read_text() == "step_00000004"


def test_a_checkpoint_that_was_interrupted_is_passed_over(make_engine, saved):
    engine = make_engine()
    assert engine.load(saved) == {"epoch": 0}
    engine.train_step(make_batch(1))
    engine.save(saved, {"epoch": 1})
    (checkpoints.checkpoint_path(saved, 2) / checkpoints.MARKER).unlink()
    again = make_engine()
    assert again.load(saved) == {"epoch": 0}
    assert again.step == 1


def test_saving_one_step_twice_keeps_the_second_state(make_engine, saved):
    engine = make_engine()
    engine.load(saved)
    engine.save(saved, {"epoch": "again"})
    assert make_engine().load(saved) == {"epoch": "again"}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            {"classifier": {"name": "test_vit"}},
            r"classifier\.name \(test_resnet there, test_vit now\)",
        ),
        ({"num_classes": 5}, r"number of classes \(3 there, 5 now\)"),
        ({"optim": {"name": "adamw"}}, r"optim\.name \(sgd there, adamw now\)"),
        ({"optim": {"ema": 0.9}}, r"average of weights \(False there, True now\)"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(make_engine, saved, other, named):
    engine = make_engine(**other)
    with pytest.raises(UserError, match=named):
        engine.load(saved)


def test_a_checkpoint_of_more_ranks_is_refused(saved):
    path = checkpoints.checkpoint_path(saved, 1)
    with pytest.raises(UserError, match=r"as many training devices as wrote it \(1, 2 now\)"):
        checkpoints.check_made_with(path, {checkpoints.RANKS: 2})


def test_where_nothing_is_divided_more_ranks_may_go_on(saved):
    path = checkpoints.checkpoint_path(saved, 1)
    checkpoints.check_made_with(path, {checkpoints.RANKS: 2}, world_size_may_differ=True)


def test_a_damaged_checkpoint_is_named(make_engine, saved):
    path = checkpoints.checkpoint_path(saved, 1)
    next(path.glob("mp_rank_*")).write_bytes(b"nothing of use")
    with pytest.raises(UserError, match=f"checkpoint {path} cannot be read"):
        make_engine().load(saved)


def test_a_checkpoint_runs_no_code(make_engine, saved):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the checkpoint ran code",))

    file = next(checkpoints.checkpoint_path(saved, 1).glob("mp_rank_*"))
    torch.save({"module": Trap()}, file)
    with pytest.raises(UserError, match="cannot be read"):
        make_engine().load(saved)


def test_state_that_could_not_be_read_back_is_refused_when_saved(make_engine, tmp_path):
    with pytest.raises(TypeError, match="client_state must hold plain values"):
        make_engine().save(tmp_path, {"place": tmp_path})
    assert checkpoints.newest_step(tmp_path) is None
