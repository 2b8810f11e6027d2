"""The generation process: started by the loader, works through the plan of a run.

`python -m online_aug.generate RUN/config.yaml DEVICE THREADS`, the trainer on standard input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cache import CacheError, Store
from online_aug.config_files import load_config
from online_aug.errors import UserError
from online_aug.generation.lifeline import Lifeline, die_with_parent
from online_aug.generation.messages import Failed, Status
from online_aug.stores import open_store

if TYPE_CHECKING:
    from online_aug.generation.service import Work
    from online_aug.recipe import Recipe
    from online_aug.records import GenerationRequest

# torch and diffusers, whose import takes seconds, come after this process is tied to the trainer,
# and diffusers only where an image is left to make.


def main(argv: Sequence[str]) -> int:
    """Serve one plan; failures are told to the trainer and end with a status of their own."""
    die_with_parent()
    lifeline = Lifeline()
    config_path, device, threads = argv
    lifeline.tell(Status(state="loading"))
    try:
        serve(Path(config_path), device, int(threads), lifeline)
    except (UserError, CacheError) as error:
        lifeline.tell(Failed(reason=str(error), is_final=True))
        return 2
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        lifeline.tell(Failed(reason=reason, is_final=False))
        raise  # the traceback goes to the log
    return 0


def serve(config_path: Path, device: str, threads: int, lifeline: Lifeline) -> None:
    """Make what the cache lacks of a run's plan, until it is whole or the trainer says stop.

    Raises:
        UserError: If model or data cannot be used.
        CacheError: If the cache cannot.
    """
    import torch

    from online_aug.dataloader.sources import load_splits
    from online_aug.recipe import Recipe

    torch.set_num_threads(threads)
    config = load_config(config_path)
    recipe = Recipe(config, load_splits(config.data), device)
    store = open_store(config)
    if _is_whole(recipe, store):
        lifeline.tell(Status(state="finished", reused=len(recipe.plan)))
        return
    from online_aug.generation.image_generator import ImageGenerator
    from online_aug.generation.service import Service
    from online_aug.judge import build_gate

    generator = ImageGenerator.load(
        recipe.model,
        recipe.adapters,
        config.generation,
        recipe.dtype,
        device,
        build_gate(recipe),
    )
    generator.learn([request.prompt for request in recipe.plan])
    try:
        Service(_work(recipe), store, generator, lifeline).run()
    finally:
        generator.close()


def _is_whole(recipe: "Recipe", store: Store) -> bool:
    """Nothing is left to make, and nothing else will be asked for."""
    if recipe.saliency.follows_classifier:
        return False
    return not {"free", "claimed"} & set(store.status([request.key for request in recipe.plan]))


def _work(recipe: "Recipe") -> "Work":
    import torch

    from online_aug.generation.service import Work
    from online_aug.generation.starting import fit
    from online_aug.methods import METHODS
    from online_aug.recipe_images import SourceImages

    config = recipe.config
    sources = SourceImages(recipe.splits.train, recipe.sources)
    method = METHODS[config.method.name]
    resolution = config.generation.resolution

    def image_of(digest: str) -> torch.Tensor:
        return fit(sources.by_digest(digest), resolution)

    def prepare(requests: "Sequence[GenerationRequest]") -> torch.Tensor:
        images = torch.stack([image_of(request.source_digest) for request in requests])
        version = requests[0].saliency_version  # of one plan, so the same for all
        return method.prepare(images, requests, recipe.context_of(version), image_of)

    def refusal(request: "GenerationRequest") -> str | None:
        return method.refusal(request, recipe.context_of(request.saliency_version))

    return Work(
        plan=recipe.plan,
        plan_of=recipe.plan_of if recipe.saliency.follows_classifier else None,
        prepare=prepare,
        refusal=refusal,
        # A trainer that waits for one image cannot serve the others that would end a pause.
        max_ahead=config.generation.max_ahead if config.mixing.starvation == "substitute" else None,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
