"""Fine-tune the image generator on a configuration's training images, once.

`python -m online_aug.finetune configs/x.yaml`; `train.py` runs it when the result is missing.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from online_aug.command_line import parse_command, run_main
from online_aug.config import Config
from online_aug.config_files import resolved_yaml
from online_aug.dataloader.sources import load_splits
from online_aug.devices import plan_devices
from online_aug.errors import UserError
from online_aug.locking import alone
from online_aug.recipe import Recipe
from online_aug.recipe_images import SourceImages
from online_aug.reporting.progress import progress
from online_aug.training.distributed import (
    World,
    agree,
    end_distributed,
    rank_device,
    single,
    start_distributed,
)
from online_aug.training.interrupts import Interrupt
from online_aug.training.launcher import RECORD, is_launched, launch, only_node

if TYPE_CHECKING:
    from online_aug.generation.finetuning.loop import FinetuneTask


def main(argv: Sequence[str]) -> None:
    """Do what is missing, and say where the result is; or one rank's part of it."""
    command = parse_command(
        argv, prog="python -m online_aug.finetune", summary="Fine-tune the image generator."
    )
    config = command.load_config()
    if RECORD in os.environ:
        _join(config)
        return
    devices = plan_devices(config.devices)
    recipe = Recipe(config, load_splits(config.data), devices.generator)
    recipe.check(generates=True)
    ensure_finetuned(recipe, devices.finetune)
    sys.stdout.write(f"fine-tuned: {recipe.finetuned}\n")


def ensure_finetuned(recipe: Recipe, devices: Sequence[str] = ()) -> None:
    """Fine-tune unless the result is there; a second process that asks for it waits and takes it.

    What a process left unfinished, however it ended, goes on from its last checkpoint.

    Args:
        recipe: What is to be learned.
        devices: What to learn on, each with a part of every step; the recipe's own if there is none
            or this process is a rank itself. Several need the main thread.

    Raises:
        UserError: If `finetune.path` cannot be written, or the model cannot be loaded.
        SystemExit: If a rank failed, with its status.
    """
    folder = recipe.finetuned
    if folder is None or recipe.is_ready:
        return
    devices = devices[: recipe.config.finetune.batch_size]  # an image a step for each
    with _alone(folder):
        if recipe.is_ready:
            return
        if len(devices) > 1 and not is_launched():
            _launch(recipe.config, devices)
        else:
            _finetune(recipe, folder, single(recipe.device), lambda: None)


def _launch(config: Config, devices: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="online_aug_") as place:
        path = Path(place) / "config.yaml"
        path.write_text(resolved_yaml(config), encoding="utf-8")
        argv = [str(path), f"devices.generate=[{', '.join(devices)}]"]
        here = only_node(len(devices))  # the other machines of the run wait for the result
        if status := launch(argv, devices, script="online_aug.finetune", node=here):
            sys.exit(status)


def _join(config: Config) -> None:
    """Be one of the ranks that `_launch` started; it holds the lock, and has checked all."""
    devices = plan_devices(config.devices, trains=False)
    world = start_distributed(rank_device(devices.generate))
    if not world.is_first:
        logging.disable(logging.WARNING)  # the first says what all of them find
    recipe = Recipe(config, load_splits(config.data), devices.generator)
    assert recipe.finetuned  # otherwise nobody would have started this
    with Interrupt() as interrupt:

        def leave_together() -> None:
            if received := agree(world, interrupt.received or 0):
                sys.exit(128 + received)

        _finetune(recipe, recipe.finetuned, world, leave_together)
    end_distributed()


def _finetune(recipe: Recipe, folder: Path, world: World, after_step: Callable[[], None]) -> None:
    # diffusers: slow to import
    from online_aug.generation.finetuning.checkpoints import newest_checkpoint
    from online_aug.generation.finetuning.loop import CHECKPOINTS, finetune
    from online_aug.generation.models import load_img2img

    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    saved = newest_checkpoint(unfinished / CHECKPOINTS)
    pipeline = load_img2img(recipe.model, "float32").to(world.device)
    title = "fine-tuning the generator"
    with progress(
        f"{title} from step {saved.step}" if saved.step else title,
        recipe.adaptation.steps - saved.step,
        enabled=world.is_first,
    ) as bar:

        def report(step: int, loss: float) -> None:
            bar.advance(note=f"loss {loss:.3f}")
            after_step()

        finetune(pipeline, _task(recipe), unfinished, report, saved, world)
    if world.is_first:
        unfinished.rename(folder)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # nothing reads them in a result
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _task(recipe: Recipe) -> "FinetuneTask":
    from online_aug.generation.finetuning.latents import Examples
    from online_aug.generation.finetuning.loop import FinetuneTask
    from online_aug.generation.starting import fit

    config = recipe.config
    images = SourceImages(recipe.splits.train, recipe.sources)
    examples = Examples(
        load=lambda index: fit(images.by_index(index), config.generation.resolution),
        labels=recipe.splits.train.labels,
        hflip=config.data.hflip,
    )
    return FinetuneTask(
        examples=examples,
        concepts=recipe.concepts,
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


if __name__ == "__main__":
    run_main(main)
