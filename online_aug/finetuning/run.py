"""Fine-tune the image generator of an experiment once, on one device or on several ranks.

`ensure_finetuned` is what every command calls. With several devices it starts ranks that run
`online-aug finetune`, and each of those calls `join_finetuning`. The libraries of diffusion models
are imported only if something is left to learn.
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout

from online_aug.config import Config
from online_aug.config.loading import resolved_yaml
from online_aug.console import open_console, print_line, progress
from online_aug.cores import compute_with
from online_aug.data.sources import load_splits
from online_aug.data.transforms import fit_square
from online_aug.distributed.devices import plan_devices
from online_aug.distributed.launcher import launch, needs_launcher
from online_aug.distributed.world import (
    World,
    agree,
    end_distributed,
    rank_device,
    single,
    start_distributed,
)
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.files import alone
from online_aug.processes import Interrupt
from online_aug.settings import decided

if TYPE_CHECKING:
    from online_aug.finetuning.loop import FinetuneTask


_LOOK_EVERY_S = 1.0


def ensure_finetuned(experiment: Experiment, devices: Sequence[str] = ()) -> None:
    """Fine-tune unless the result is there; a second process waits and takes the first one's.

    If an earlier process left a result unfinished, go on from its last checkpoint.

    Args:
        experiment: Says what is to be learned.
        devices: Devices that share every step. Without any, or if this process is a rank itself,
            the experiment's own device learns. Several need the main thread.

    Raises:
        UserError: If `finetune.path` cannot be written, or the model cannot be loaded.
        SystemExit: With the status of a rank, if one failed.
    """
    folder = experiment.diffusion.finetuned
    if folder is None or experiment.diffusion.is_ready:
        return
    devices = devices[: experiment.config.finetune.batch_size]  # at least one image a step for each
    with _lock(folder, experiment.diffusion.adaptation.steps):
        if experiment.diffusion.is_ready:
            return
        if needs_launcher(devices):
            _launch_ranks(experiment.config, devices)
        else:
            _finetune(experiment, folder, single(experiment.device), lambda: None)


@contextmanager
def _lock(folder: Path, steps: int) -> Iterator[None]:
    """Let one process at a time write a result; show how far another one is meanwhile."""
    with ExitStack() as stack:
        try:
            lock = alone(folder.with_suffix(".lock"), _LOOK_EVERY_S)
            try:
                stack.enter_context(lock)
            except Timeout:
                _wait(lock, folder.with_suffix(".unfinished"), steps)
                stack.callback(lock.release)
        except OSError as error:
            raise UserError(
                f"finetune.path must be a writable folder, got {folder.parent} ({error.strerror})"
            ) from error
        yield


def _wait(lock: FileLock, unfinished: Path, steps: int) -> None:
    with progress("waiting for another process, which fine-tunes the generator", steps) as bar:
        while True:
            try:
                lock.acquire()
            except Timeout:
                bar.update(_newest_step(unfinished), steps)
            else:
                return


def _newest_step(unfinished: Path) -> int:
    names = [path.stem.removeprefix("step_") for path in unfinished.glob("*/step_*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _launch_ranks(config: Config, devices: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="online_aug_") as place:
        path = Path(place) / "config.yaml"
        path.write_text(resolved_yaml(config), encoding="utf-8")
        argv = ["finetune", str(path), f"devices.generate=[{', '.join(devices)}]"]
        if status := launch("online_aug", argv, devices):
            sys.exit(status)


def join_finetuning(config: Config) -> None:
    """Do the part of one rank that `ensure_finetuned` has started.

    The process that started it has checked the configuration and holds the lock of the result.

    Raises:
        SystemExit: With 128 plus the number of the signal that interrupted any of the ranks.
    """
    devices = plan_devices(config.devices, trains=False)
    compute_with(devices.generate_threads, devices.generate[0])
    world = start_distributed(rank_device(devices.generate))
    if not world.is_first:
        logging.disable(logging.WARNING)  # the first rank reports what all of them find
    experiment = Experiment(config, load_splits(config.data, config.cache.path), devices.generator)
    assert experiment.diffusion.finetuned  # otherwise nobody would have started this rank
    with Interrupt() as interrupt:

        def leave_together() -> None:
            if received := agree(world, interrupt.received or 0):
                sys.exit(128 + received)

        _finetune(experiment, experiment.diffusion.finetuned, world, leave_together)
    end_distributed()


def _finetune(
    experiment: Experiment, folder: Path, world: World, after_step: Callable[[], None]
) -> None:
    from online_aug.diffusion.loading import load_img2img
    from online_aug.finetuning.loop import CHECKPOINTS, finetune, newest_checkpoint

    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    checkpoint = newest_checkpoint(unfinished / CHECKPOINTS)
    files = experiment.diffusion
    pipeline = load_img2img(files.model, "float32", unet=files.unet).to(world.device)
    title = "fine-tuning the generator"
    with progress(
        f"{title} from step {checkpoint.step}" if checkpoint.step else title,
        experiment.diffusion.adaptation.steps - checkpoint.step,
        enabled=world.is_first,
    ) as bar:

        def report(step: int, loss: float) -> None:
            bar.advance(note=f"loss {loss:.3f}")
            after_step()

        try:
            finetune(pipeline, _task(experiment), unfinished, report, checkpoint, world)
        except (KeyboardInterrupt, SystemExit):
            if world.is_first:
                print_line(
                    open_console(),
                    "interrupted: the same command goes on from step "
                    f"{_newest_step(unfinished)} of the fine-tuning",
                )
            raise
    if world.is_first:
        unfinished.rename(folder)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # a whole result needs none
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _task(experiment: Experiment) -> "FinetuneTask":
    from online_aug.finetuning.loop import FinetuneTask
    from online_aug.finetuning.objective import Examples, RandomSquare

    config = experiment.config
    side = config.finetune.resolution or decided(config.generation.resolution)
    cut = RandomSquare(side) if config.finetune.crop == "random" else None
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    examples = Examples(
        load=images.by_index if cut else lambda index: fit_square(images.by_index(index), side),
        labels=experiment.splits.train.labels,
        hflip=config.data.hflip,
        cut=cut,
        samples_latents=config.finetune.latents == "sample",
    )
    return FinetuneTask(
        examples=examples,
        concepts=experiment.diffusion.concepts,
        config=config.finetune,
        generation=config.generation,
    )
