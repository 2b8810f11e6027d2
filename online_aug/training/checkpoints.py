"""Checkpoint folders: written whole, checked before a run continues, dealt out to other ranks.

A folder counts once its marker is written. The marker says what a run must have in common with the
checkpoint, so that a run that cannot continue is refused before anything is started.
"""

import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cache import Store, cache_exists
from online_aug.classifier.class_names import difference
from online_aug.config import Config
from online_aug.data.image_sets import ImageSet, order_digest
from online_aug.distributed.identity import identify
from online_aug.distributed.world import World
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError, first_line
from online_aug.experiment.experiment import Experiment
from online_aug.files import write_atomically
from online_aug.loader.iteration import check_same_cache
from online_aug.reporting.run_directory import is_finished
from online_aug.training.deepspeed_setup import zero_stage

FOLDER = "checkpoints"
"""Folder of the checkpoints in the run directory."""
KEPT = 2
"""Newest checkpoints that stay."""
RANKS, STAGE, CLASSES = "number of training devices", "ZeRO stage", "classes"
UNIVERSAL = "universal"
"""Folder in a checkpoint for the form that DeepSpeed converts it to, for any number of ranks."""
MARKER = "complete.json"
"""File written last: a folder without it was interrupted."""

MadeWith = Mapping[str, str | int | bool | list[str]]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps."""
    return folder / f"step_{step:08d}"


def own_state_path(path: Path, rank: int) -> Path:
    """Return the file that holds a rank's own state in a checkpoint."""
    return path / f"rank_{rank:04d}.pt"


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest whole checkpoint; None if there is none."""
    steps = [_step(path) for path in folder.glob("step_*") if (path / MARKER).is_file()]
    return max(steps, default=None)


def discard(path: Path) -> None:
    """Remove a checkpoint, its marker first, so that it never looks whole meanwhile."""
    (path / MARKER).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Remove an unfinished checkpoint if the disk has no room for it.

    Raises:
        UserError: If there was no room.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and "inline_container" not in str(error):
            raise  # torch.save only says where in its code a write failed
        shutil.rmtree(path, ignore_errors=True)
        reason = (isinstance(error, OSError) and error.strerror) or "no more than a part written"
        raise UserError(
            f"run.dir must have room for {path}, got {reason}: once it has, the same command goes "
            "on from the checkpoint before"
        ) from error


def seal(path: Path, made_with: MadeWith) -> None:
    """Flush a checkpoint to disk, mark it as whole, and remove all but the newest `KEPT`."""
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
    """Return whether a checkpoint has been converted to its universal form."""
    return (path / UNIVERSAL / "zero" / "optimizer_state.pt").is_file()


def made_with(config: Config, *, class_names: Sequence[str], ranks: int) -> MadeWith:
    """Return what a training must have in common with a checkpoint to continue from it."""
    return {
        "classifier.name": config.classifier.name,
        CLASSES: list(class_names),
        RANKS: ranks,
        STAGE: zero_stage(config),
        "optim.name": config.optim.name,
        "average of weights": config.optim.ema is not None,
    }


def is_convertible(config: Config) -> bool:
    """Return whether DeepSpeed can convert a divided checkpoint for another number of ranks.

    DeepSpeed converts the state of Adam alone, and gives all groups of ZeRO stage 3 the settings of
    one.
    """
    optim = config.optim
    is_adam = optim.name in ("adam", "adamw") and not optim.options.get("amsgrad")
    return zero_stage(config) in (1, 2) and is_adam


def check_same_training(
    path: Path, config: Config, now: MadeWith, *, is_dealt_out: bool = True
) -> None:
    """Refuse a checkpoint from which a run cannot continue; read its marker alone.

    Args:
        path: Folder of the checkpoint.
        config: Configuration of the run.
        now: What this launch trains with.
        is_dealt_out: Whether the ranks' own states are dealt out to any number of ranks.

    Raises:
        UserError: If the run cannot continue, or the marker cannot be read.
    """
    check_made_with(
        path,
        now,
        world_size_may_differ=is_dealt_out and zero_stage(config) == 0,
        is_convertible=is_dealt_out and is_convertible(config),
    )


def unreadable(path: Path, said: str) -> UserError:
    """Return the error for a checkpoint with a damaged file.

    Args:
        path: Folder of the checkpoint.
        said: What a library said about the file.
    """
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
        path: Folder of the checkpoint.
        now: What this launch trains with.
        world_size_may_differ: Whether nothing in it is divided between ranks.
        is_convertible: Whether what is divided can be converted for another number of ranks.

    Raises:
        UserError: If values differ, naming all of them, or if the marker cannot be read.
    """
    try:
        then = read_object(path / MARKER)
    except DocumentError as error:
        raise unreadable(path, str(error)) from None
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
        named = ", ".join(_named(key, then.get(key), now[key]) for key in differ)
        raise UserError(
            f"checkpoint {path} must be of the same training to be resumed, differs in {named}: "
            "choose another run.name or set run.resume=false"
        )


def _named(key: str, then: object, now: object) -> str:
    if isinstance(then, list) and isinstance(now, list):
        return f"{key} ({difference(then, now)})"
    return f"{key} ({then} there, {now} now)"


def conversion(path: Path) -> str:
    """Return the command that converts a checkpoint for any number of ranks."""
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

    Nothing is checked if the run is not to be resumed or has finished. Each node has a cache of its
    own; only the first node's is checked here.

    Args:
        experiment: Experiment of this launch.
        directory: Directory of the run, which may not exist yet.
        ranks: Training ranks on all nodes.

    Raises:
        UserError: If so, naming what differs.
    """
    config = experiment.config
    step = newest_step(directory / FOLDER)
    if not config.run.resume or step is None or is_finished(directory, config.run.epochs):
        return
    path = checkpoint_path(directory / FOLDER, step)
    names = experiment.splits.train.class_names
    check_same_training(path, config, made_with(config, class_names=names, ranks=ranks))
    if identify().is_first:
        _check_same_material(path, config.cache.path, experiment.splits.train)


def _check_same_material(checkpoint: Path, cache: Path, train: ImageSet) -> None:
    try:
        state = torch.load(own_state_path(checkpoint, rank=0), weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise unreadable(checkpoint, first_line(error)) from None
    position = 0
    if cache_exists(cache):
        with Store(cache, readonly=True) as store:
            position = store.position()
    check_same_cache(state["loader"], position)
    if state.get("images") != order_digest(train):
        raise UserError(
            f"data.source must give the training images that {checkpoint} was trained on, gives "
            f"others ({len(train)} now): some were added, removed, or left out as unreadable; put "
            "them back, or set run.resume=false"
        )


_NEW_CACHE = {"position": 0, "position_at_start": 0}
"""Positions in the log of a node that took no part before."""


def share_out(states: Sequence[dict[str, Any]], world: World) -> dict[str, Any]:
    """Redistribute saved per-rank state after ranks or nodes have changed.

    The global batches stay the same. Counts are summed and dealt out again, so that their sum over
    all ranks, and the limit on how often an image is served, stay the same too. Each node has its
    own cache: with as many nodes as before, a node keeps its own counts.

    Args:
        states: States that the ranks saved, by rank.
        world: This rank among those of now.
    """
    if tuple(state["node"] for state in states) == world.nodes_by_rank:
        return states[world.rank]
    shared, rank, ranks = list(states), world.rank, world.world_size
    neighbours = [state for state in states if state["node"] == world.node]
    if len({state["node"] for state in states}) == world.nodes:
        shared, rank, ranks = neighbours, world.local_rank, world.local_world_size
    places = neighbours[0]["loader"] if neighbours else _NEW_CACHE
    first, loaders = shared[0], [state["loader"] for state in shared]
    times = sum((Counter(loader["times_sampled"]) for loader in loaders), Counter[int]())
    dealt = {number: _part(count, rank, ranks) for number, count in times.items()}
    loss = sum(float(state["tally"]["loss"]) for state in states) / len(states)
    starts = [state["run"]["epoch_start"] for state in shared]
    return {
        **first,
        "node": world.node,
        "run": {**first["run"], "epoch_start": _dealt(starts, rank, ranks)},
        "tally": {**first["tally"], "loss": loss},
        "loader": {
            **first["loader"],
            **{name: places[name] for name in _NEW_CACHE},
            "times_sampled": {number: count for number, count in dealt.items() if count},
            "counts": _dealt([loader["counts"] for loader in loaders], rank, ranks),
            "refusals": _dealt([loader["refusals"] for loader in loaders], rank, ranks),
        },
    }


def _dealt(counts: Sequence[Mapping[str, int]], rank: int, ranks: int) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: _part(sum(each.get(name, 0) for each in counts), rank, ranks) for name in names}


def _part(count: int, rank: int, ranks: int) -> int:
    return count // ranks + (rank < count % ranks)
