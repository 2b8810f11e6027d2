"""Checkpoint folders: which are whole, which is newest, which may go.

Whether a run can go on from where it stopped, told before anything is started or written.
"""

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from cache import Store, cache_exists
from online_aug.classifier.model import first_line
from online_aug.config import Config
from online_aug.distributed.identity import identify
from online_aug.errors import UserError, one_line
from online_aug.experiment.experiment import Experiment
from online_aug.files import write_atomically
from online_aug.loader.loader import check_same_cache
from online_aug.reporting.run_directory import is_finished
from online_aug.training.deepspeed_setup import zero_stage

FOLDER = "checkpoints"
"""In the run directory."""
KEPT = 2
RANKS, STAGE = "number of training devices", "ZeRO stage"
UNIVERSAL = "universal"
"""In a checkpoint: the same, converted by DeepSpeed to go on on any number of ranks."""
MARKER = "complete.json"
"""Written last: a folder without it was interrupted."""

MadeWith = Mapping[str, str | int | bool]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"step_{step:08d}"


def own_state_path(path: Path, rank: int) -> Path:
    """Where a rank keeps its own state in a checkpoint."""
    return path / f"rank_{rank:04d}.pt"


def newest_step(folder: Path) -> int | None:
    """Step of the newest whole checkpoint, None if there is none."""
    steps = [_step(path) for path in folder.glob("step_*") if (path / MARKER).is_file()]
    return max(steps, default=None)


def discard(path: Path) -> None:
    """Remove a checkpoint; its marker first, so that it never looks whole while it goes."""
    (path / MARKER).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Remove what was written of a checkpoint for which the disk has no room, and say so.

    Raises:
        UserError: If it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and "inline_container" not in str(error):
            raise  # of torch.save only the last failed write is known, by where it is raised
        shutil.rmtree(path, ignore_errors=True)
        reason = (isinstance(error, OSError) and error.strerror) or "no more than a part written"
        raise UserError(
            f"run.dir must have room for {path}, got {reason}: once it has, the same command goes "
            "on from the checkpoint before"
        ) from error


def seal(path: Path, made_with: MadeWith) -> None:
    """Declare a checkpoint whole: on disk, marked, named by `latest`; older ones than KEPT go."""
    for file in path.rglob("*"):
        if file.is_file():
            _flush(file)
    write_atomically(path / MARKER, json.dumps(made_with, indent=2) + "\n")
    _flush(path)
    write_atomically(path.parent / "latest", path.name)
    whole = sorted((p for p in path.parent.glob("step_*") if (p / MARKER).is_file()), key=_step)
    for other in path.parent.glob("step_*"):
        if other not in whole[-KEPT:]:
            discard(other)


def is_converted(path: Path) -> bool:
    """Whether a checkpoint has its universal form beside it."""
    return (path / UNIVERSAL / "zero" / "optimizer_state.pt").is_file()


def made_with(config: Config, *, num_classes: int, ranks: int) -> MadeWith:
    """What a training must have in common with a checkpoint to go on from it."""
    return {
        "classifier.name": config.classifier.name,
        "number of classes": num_classes,
        RANKS: ranks,
        STAGE: zero_stage(config),
        "optim.name": config.optim.name,
        "average of weights": config.optim.ema is not None,
    }


def is_convertible(config: Config) -> bool:
    """Whether DeepSpeed can bring a divided checkpoint of this training to other ranks.

    It knows the state of Adam alone, and gives all groups of ZeRO stage 3 the settings of one.
    """
    optim = config.optim
    is_adam = optim.name in ("adam", "adamw") and not optim.options.get("amsgrad")
    return zero_stage(config) in (1, 2) and is_adam


def check_same_training(
    path: Path, config: Config, now: MadeWith, *, is_dealt_out: bool = True
) -> None:
    """Refuse a checkpoint from which a run cannot go on; reads its marker alone.

    Args:
        path: Of the checkpoint.
        config: Of the run.
        now: What this launch trains with.
        is_dealt_out: What the ranks saved of their own is dealt out to any number of them.

    Raises:
        UserError: If it cannot, or the marker cannot be read.
    """
    check_made_with(
        path,
        now,
        world_size_may_differ=is_dealt_out and zero_stage(config) == 0,
        is_convertible=is_dealt_out and is_convertible(config),
    )


def unreadable(path: Path, said: str) -> UserError:
    """The error for a checkpoint with a damaged file, of which a library said this."""
    return UserError(
        f"checkpoint {path} cannot be read ({said}): remove this folder to go on from the one "
        "before"
    )


def check_made_with(
    path: Path,
    now: MadeWith,
    *,
    world_size_may_differ: bool = False,
    is_convertible: bool = False,
) -> None:
    """Refuse a checkpoint that another classifier or another number of ranks made.

    Args:
        path: Of the checkpoint.
        now: What this launch trains with.
        world_size_may_differ: Nothing in it is divided between ranks.
        is_convertible: What is divided can be converted for another number of ranks.

    Raises:
        UserError: If a value differs, naming all that do; if it cannot be read.
    """
    try:
        then = dict(json.loads((path / MARKER).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise unreadable(path, one_line(error)) from None
    differ = [key for key in now if then.get(key) != now[key]]
    if RANKS in differ and (world_size_may_differ or (is_convertible and is_converted(path))):
        differ.remove(RANKS)
    if differ == [RANKS]:
        other = f"convert it with {conversion(path)}" if is_convertible else "train with stage 0"
        raise UserError(
            f"checkpoint {path} must be resumed on as many training devices as wrote it "
            f"({then.get(RANKS)}, {now[RANKS]} now), among which ZeRO stage {then.get(STAGE)} has "
            f"divided it: set devices.train for {then.get(RANKS)}, or {other}"
        )
    if differ:
        named = ", ".join(f"{key} ({then.get(key)} there, {now[key]} now)" for key in differ)
        raise UserError(
            f"checkpoint {path} must be of the same training to be resumed, differs in {named}: "
            "choose another run.name or set run.resume=false"
        )


def conversion(path: Path) -> str:
    """The command that makes a checkpoint go on on any number of ranks."""
    return shlex.join(
        [
            *("python", "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
            *("--input_folder", str(path), "--output_folder", str(path / UNIVERSAL)),
        ]
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_can_go_on(experiment: Experiment, directory: Path, ranks: int) -> None:
    """Refuse a run directory whose newest checkpoint is of another training or another cache.

    The checkpoint is passed over where the run is not to be resumed or has finished. Each node has
    a cache of its own: the first one's is looked at here.

    Args:
        experiment: Of this launch.
        directory: Of the run, which may not be there yet.
        ranks: That train, on all nodes.

    Raises:
        UserError: If so; names what differs.
    """
    config = experiment.config
    step = newest_step(directory / FOLDER)
    if not config.run.resume or step is None or is_finished(directory, config.run.epochs):
        return
    path = checkpoint_path(directory / FOLDER, step)
    num_classes = len(experiment.splits.train.class_names)
    check_same_training(path, config, made_with(config, num_classes=num_classes, ranks=ranks))
    if identify().is_first:
        _check_cache(path, config.cache.path)


def _check_cache(checkpoint: Path, cache: Path) -> None:
    try:
        state = torch.load(own_state_path(checkpoint, rank=0), weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise unreadable(checkpoint, first_line(error)) from None
    position = 0
    if cache_exists(cache):
        with Store(cache, readonly=True) as store:
            position = store.position()
    check_same_cache(state["loader"], position)
