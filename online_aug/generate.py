"""The generation process: started by the loader, works through the plan of a run.

`python -m online_aug.generate RUN/config.yaml DEVICE THREADS`, the trainer on standard input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cache import CacheError, Store
from online_aug.config_files import load_config
from online_aug.dataloader.sources import load_splits
from online_aug.errors import UserError
from online_aug.generation.image_generator import ImageGenerator, fit
from online_aug.generation.lifeline import Lifeline, die_with_parent
from online_aug.generation.messages import Failed, Status
from online_aug.generation.service import Service, Work
from online_aug.methods import METHODS
from online_aug.recipe import Recipe, SourceImages
from online_aug.records import GenerationRequest


def main(argv: Sequence[str]) -> int:
    """Serve one plan; failures are told to the trainer and end with a status of their own."""
    die_with_parent()
    lifeline = Lifeline()
    config_path, device, threads = argv
    torch.set_num_threads(int(threads))
    lifeline.tell(Status(state="loading"))
    try:
        _service(Path(config_path), device, lifeline).run()
    except (UserError, CacheError) as error:
        lifeline.tell(Failed(reason=str(error), is_final=True))
        return 2
    except Exception as error:
        lifeline.tell(Failed(reason=f"{type(error).__name__}: {error}", is_final=False))
        raise  # the traceback goes to the log
    return 0


def _service(config_path: Path, device: str, lifeline: Lifeline) -> Service:
    config = load_config(config_path, [])
    recipe = Recipe(config, load_splits(config.data), device)
    sources = SourceImages(recipe.splits.train, recipe.sources)
    method = METHODS[config.method.name]
    resolution = config.generation.resolution

    def prepare(requests: Sequence[GenerationRequest]) -> torch.Tensor:
        images = [fit(sources.by_digest(r.source_digest), resolution) for r in requests]
        return method.prepare(torch.stack(images), requests)

    work = Work(
        plan=recipe.plan,
        prepare=prepare,
        slots=config.generation.slots,
        max_ahead=config.generation.max_ahead,
    )
    generator = ImageGenerator.load(
        recipe.model, recipe.finetuned, config.generation, recipe.dtype, device
    )
    store = Store(config.cache.path, codec=config.cache.codec, max_gib=config.cache.max_gib)
    return Service(work, store, generator, lifeline)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
