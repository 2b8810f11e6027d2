"""Fine-tune the image generator on a configuration's training images, once.

`python -m online_aug.finetune configs/x.yaml`; `train.py` runs it when the result is missing.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from online_aug.command_line import parse_command, run_main
from online_aug.dataloader.sources import load_splits
from online_aug.devices import plan_devices
from online_aug.errors import UserError
from online_aug.locking import alone
from online_aug.recipe import Recipe
from online_aug.recipe_images import SourceImages
from online_aug.reporting.progress import progress

if TYPE_CHECKING:
    from online_aug.generation.finetuning.loop import FinetuneTask


def main(argv: Sequence[str]) -> None:
    """Do what is missing, and say where the result is."""
    command = parse_command(
        argv, prog="python -m online_aug.finetune", summary="Fine-tune the image generator."
    )
    config = command.load_config()
    devices = plan_devices(config.devices)
    recipe = Recipe(config, load_splits(config.data), devices.generator)
    recipe.check(generates=True)
    ensure_finetuned(recipe)
    sys.stdout.write(f"fine-tuned: {recipe.finetuned}\n")


def ensure_finetuned(recipe: Recipe) -> None:
    """Fine-tune unless the result is there; a second process that asks for it waits and takes it.

    What a process left unfinished, however it ended, goes on from its last checkpoint.

    Raises:
        UserError: If `finetune.path` cannot be written, or the model cannot be loaded.
    """
    folder = recipe.finetuned
    if folder is None or recipe.is_ready:
        return
    with _alone(folder):
        if not recipe.is_ready:
            _finetune(recipe, folder)


def _finetune(recipe: Recipe, folder: Path) -> None:
    # diffusers: slow to import
    from online_aug.generation.finetuning.checkpoints import newest_checkpoint
    from online_aug.generation.finetuning.loop import CHECKPOINTS, finetune
    from online_aug.generation.models import load_img2img

    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    saved = newest_checkpoint(unfinished / CHECKPOINTS)
    pipeline = load_img2img(recipe.model, "float32").to(recipe.device)
    with _shown(recipe.adaptation.steps, saved.step) as report:
        finetune(pipeline, _task(recipe), unfinished, report, saved)
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
def _shown(steps: int, done: int) -> Iterator[Callable[[int, float], None]]:
    """What takes the loss of each step that is left."""
    title = "fine-tuning the generator"
    with progress(f"{title} from step {done}" if done else title, steps - done) as bar:
        yield lambda step, loss: bar.advance(note=f"loss {loss:.3f}")


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
