"""Fine-tune the image generator on a configuration's training images, once.

`online-aug finetune x.yaml`; `online-aug train` runs it when the result is missing.

States of a fine-tuning on disk: each whole or known to be damaged, the newest two kept.
"""

import hashlib
import io
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from online_aug.config import Config
from online_aug.config.loading import resolved_yaml
from online_aug.console import progress
from online_aug.distributed.launcher import launch, needs_launcher
from online_aug.distributed.world import (
    World,
    single,
)
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.files import alone, write_atomically

if TYPE_CHECKING:
    from online_aug.finetuning.loop import FinetuneTask


def ensure_finetuned(experiment: Experiment, devices: Sequence[str] = ()) -> None:
    """Fine-tune unless the result is there; a second process that asks for it waits and takes it.

    What a process left unfinished, however it ended, goes on from its last checkpoint.

    Args:
        experiment: What is to be learned.
        devices: What to learn on, each with a part of every step; the experiment's own if there
            is none or this process is a rank itself. Several need the main thread.

    Raises:
        UserError: If `finetune.path` cannot be written, or the model cannot be loaded.
        SystemExit: If a rank failed, with its status.
    """
    folder = experiment.finetuned
    if folder is None or experiment.is_ready:
        return
    devices = devices[: experiment.config.finetune.batch_size]  # an image a step for each
    with _alone(folder):
        if experiment.is_ready:
            return
        if needs_launcher(devices):
            _launch(experiment.config, devices)
        else:
            finetune_rank(experiment, folder, single(experiment.device), lambda: None)


def _launch(config: Config, devices: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="online_aug_") as place:
        path = Path(place) / "config.yaml"
        path.write_text(resolved_yaml(config), encoding="utf-8")
        argv = ["finetune", str(path), f"devices.generate=[{', '.join(devices)}]"]
        if status := launch("online_aug", argv, devices):
            sys.exit(status)


def finetune_rank(
    experiment: Experiment, folder: Path, world: World, after_step: Callable[[], None]
) -> None:
    """Do one rank's part of a fine-tuning; `after_step` is called after every step."""
    # diffusers: slow to import
    from online_aug.diffusion.loading import load_img2img
    from online_aug.finetuning.loop import CHECKPOINTS, finetune

    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    saved = newest_checkpoint(unfinished / CHECKPOINTS)
    pipeline = load_img2img(experiment.model, "float32").to(world.device)
    title = "fine-tuning the generator"
    with progress(
        f"{title} from step {saved.step}" if saved.step else title,
        experiment.adaptation.steps - saved.step,
        enabled=world.is_first,
    ) as bar:

        def report(step: int, loss: float) -> None:
            bar.advance(note=f"loss {loss:.3f}")
            after_step()

        finetune(pipeline, _task(experiment), unfinished, report, saved, world)
    if world.is_first:
        unfinished.rename(folder)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # nothing reads them in a result
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _task(experiment: Experiment) -> "FinetuneTask":
    from online_aug.finetuning.loop import Examples, FinetuneTask
    from online_aug.generation.inputs import fit

    config = experiment.config
    images = SourceImages(experiment.splits.train, experiment.sources)
    examples = Examples(
        load=lambda index: fit(images.by_index(index), config.generation.resolution),
        labels=experiment.splits.train.labels,
        hflip=config.data.hflip,
    )
    return FinetuneTask(
        examples=examples,
        concepts=experiment.concepts,
        config=config.finetune,
        generation=config.generation,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of one result."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder.with_suffix(".lock")))
        except OSError as error:
            raise UserError(
                f"finetune.path must be a writable folder, got {folder.parent} ({error.strerror})"
            ) from error
        yield


_log = logging.getLogger(__name__)

KEPT = 2

_FORMAT = 1

_DIGEST_BYTES = 16

_SUFFIX = ".checkpoint"


@dataclass(frozen=True)
class Saved:
    """Where a fine-tuning goes on."""

    step: int
    """Optimizer steps done; 0 is the beginning, without a state."""
    state: Mapping[str, Any]
    """Of the learner. Order and noise of a step follow from seed and step, and need no state."""


BEGINNING = Saved(0, {})


def save_checkpoint(folder: Path, saved: Saved) -> None:
    """Write a state with its digest, so that it is there whole or not at all; older ones go.

    Args:
        folder: Of the checkpoints of one fine-tuning; made where it is missing.
        saved: Tensors, plain values and containers of them.

    Raises:
        UserError: If it cannot be written, such as to a full disk; older ones are then still there.
    """
    content = io.BytesIO()
    torch.save({"format": _FORMAT, "step": saved.step, "state": dict(saved.state)}, content)
    path = folder / f"step_{saved.step:08d}{_SUFFIX}"
    try:
        folder.mkdir(exist_ok=True)
        write_atomically(path, _digest(content.getbuffer()) + content.getbuffer())
    except OSError as error:
        raise UserError(
            f"finetune.path must have room for {path}, got {error.strerror}: the same command goes "
            "on from the checkpoint before once it has"
        ) from error
    kept = _newest_first(folder)[:KEPT]
    for other in folder.iterdir():
        if other not in kept:  # also what a killed process left half written
            other.unlink()


def newest_checkpoint(folder: Path) -> Saved:
    """The last state that was written; the beginning where there is none that can be read.

    One that is damaged or of another version is said in a line of the log and passed over.
    """
    for path in _newest_first(folder):
        try:
            return _read(path)
        except (OSError, ValueError) as error:
            _log.warning("fine-tuning does not go on from %s: %s", path, error)
    return BEGINNING


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step_*{_SUFFIX}"), reverse=True)


def _read(path: Path) -> Saved:
    content = path.read_bytes()
    if _digest(content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
        raise ValueError("it is damaged")
    found = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), map_location="cpu", weights_only=True)
    if found["format"] != _FORMAT:
        raise ValueError(f"it is of another version ({found['format']}, {_FORMAT} here)")
    return Saved(found["step"], found["state"])


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
