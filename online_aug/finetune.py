"""Fine-tune the image generator on a configuration's training images, once.

`python -m online_aug.finetune configs/x.yaml`; `train.py` runs it when the result is missing.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from online_aug.command_line import parse_command, run_main
from online_aug.dataloader.sources import load_splits
from online_aug.devices import plan_devices
from online_aug.errors import UserError
from online_aug.locking import alone
from online_aug.recipe import Recipe
from online_aug.recipe_images import SourceImages
from online_aug.reporting.progress import progress


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
    from online_aug.generation.finetuning.latents import Examples  # diffusers: slow to import
    from online_aug.generation.finetuning.loop import FinetuneTask, finetune
    from online_aug.generation.models import load_img2img
    from online_aug.generation.starting import fit

    config = recipe.config
    images = SourceImages(recipe.splits.train, recipe.sources)
    examples = Examples(
        load=lambda index: fit(images.by_index(index), config.generation.resolution),
        labels=recipe.splits.train.labels,
        hflip=config.data.hflip,
    )
    task = FinetuneTask(examples=examples, concepts=recipe.concepts, config=config.finetune)
    pipeline = load_img2img(recipe.model, "float32").to(recipe.device)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        with progress("fine-tuning the generator", recipe.adaptation.steps) as bar:
            finetune(
                pipeline, task, partial, lambda step, loss: bar.advance(note=f"loss {loss:.3f}")
            )
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
