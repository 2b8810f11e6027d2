import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from classifier_samples import divided_engine, make_batch, make_config, mean_losses
from launches import LIMIT_S, SCRIPTS, environment

from online_aug.errors import UserError
from online_aug.training import checkpoints
from online_aug.training.checkpoints import is_convertible


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


@contextmanager
def small_files():
    """No file may be larger than 64 KiB here, which is less than a checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_without_room_is_one_clear_line_and_the_one_before_stays(make_engine, saved):
    engine = make_engine()
    engine.load(saved)
    engine.train_step(make_batch(1))
    message = r"^run\.dir must have room for .*step_00000002, got [^\n]+$"
    with small_files(), pytest.raises(UserError, match=message):
        engine.save(saved, {"epoch": 1})
    assert [path.name for path in saved.glob("step_*")] == ["step_00000001"]
    assert make_engine().load(saved) == {"epoch": 0}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            {"classifier": {"name": "test_vit"}},
            r"classifier\.name \(test_resnet there, test_vit now\)",
        ),
        ({"num_classes": 5}, r"classes \(there were 3 classes and are 5 now\)"),
        ({"optim": {"name": "sgd"}}, r"optim\.name \(adamw there, sgd now\)"),
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


def test_an_undivided_checkpoint_continues_on_more_ranks(saved):
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


def of_the_first(states, world):
    return states[0]


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.nightly)])
def divided(request, tmp_path_factory):
    """A checkpoint that two ranks saved, its ZeRO stage, and the losses of two further steps."""
    folder, stage = tmp_path_factory.mktemp("divided"), request.param
    command = [SCRIPTS / "launch.py", SCRIPTS / "save_divided.py", "2", folder, str(stage)]
    subprocess.run([sys.executable, *command], env=environment(), check=True, timeout=LIMIT_S)
    return folder, stage, json.loads((folder / "losses.json").read_text())


@pytest.mark.slow
def test_divided_training_continues_on_one_rank_after_the_advised_command(world, tmp_path, divided):
    saved_by_two, stage, expected = divided
    shutil.copytree(saved_by_two, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="convert it with python -m deepspeed") as refused:
        divided_engine(world, stage).load(tmp_path, of_the_first)
    _, advised = str(refused.value).split("convert it with python ")
    ran = subprocess.run([sys.executable, *shlex.split(advised)], env=environment(), check=False)
    assert ran.returncode == 0
    engine = divided_engine(world, stage)
    assert engine.load(tmp_path, of_the_first) == {"rank": 0}
    assert engine.step == 2
    assert mean_losses(engine, world) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_converted_checkpoint_runs_no_code(world, tmp_path, divided):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the checkpoint ran code",))

    saved_by_two, stage, _ = divided
    shutil.copytree(saved_by_two, tmp_path, dirs_exist_ok=True)
    place = checkpoints.checkpoint_path(tmp_path, 2) / checkpoints.UNIVERSAL / "zero"
    place.mkdir(parents=True)
    torch.save(Trap(), place / "optimizer_state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        divided_engine(world, stage).load(tmp_path, of_the_first)


@pytest.mark.slow
def test_a_converted_checkpoint_runs_no_code_through_a_link(world, tmp_path, divided):
    saved_by_two, stage, _ = divided
    shutil.copytree(saved_by_two, tmp_path / "run")
    path = checkpoints.checkpoint_path(tmp_path / "run", 2)
    ran = subprocess.run(
        shlex.split(checkpoints.conversion(path).replace("python", sys.executable, 1)),
        env=environment(),
        check=False,
    )
    assert ran.returncode == 0
    zero = path / checkpoints.UNIVERSAL / "zero"
    parameter = next(place for place in sorted(zero.iterdir()) if place.is_dir())
    parameter.symlink_to(parameter.rename(tmp_path / "away"))
    torch.save({"param": Marker(tmp_path / "ran")}, parameter / "fp32.pt")
    with pytest.raises(UserError, match="cannot be read"):
        divided_engine(world, stage).load(tmp_path / "run", of_the_first)
    assert not (tmp_path / "ran").exists()


class Marker:
    """Makes a file if it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (os.mkdir, (str(self._path),))


def test_a_checkpoint_that_cannot_be_converted_is_refused_with_other_advice(saved):
    path = checkpoints.checkpoint_path(saved, 1)
    with pytest.raises(UserError, match=r"set devices.train for 1, or train with stage 0$"):
        checkpoints.check_made_with(path, {checkpoints.RANKS: 2})


@pytest.mark.parametrize(
    ("stage", "optim", "expected"),
    [
        (1, {"name": "adamw"}, True),
        (2, {"name": "adam"}, True),
        (3, {"name": "adamw"}, False),
        (1, {"name": "sgd"}, False),
        (1, {"name": "adamw", "options": {"amsgrad": True}}, False),
    ],
)
def test_only_what_deepspeed_restores_as_a_whole_counts_as_convertible(stage, optim, expected):
    settings = {"deepspeed": {"zero_optimization": {"stage": stage}}}
    assert is_convertible(make_config(classifier=settings, optim=optim)) == expected
