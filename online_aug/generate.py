"""The generation process: started by the loader, works through the plan of a run.

`python -m online_aug.generate RUN/config.yaml PLACE`, the trainer on standard input.
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cache import CacheError, Store
from online_aug.config_files import load_config
from online_aug.errors import UserError
from online_aug.generation.lifeline import Lifeline, die_with_parent
from online_aug.generation.messages import Failed, Status
from online_aug.generation.place import Place
from online_aug.stores import open_store

if TYPE_CHECKING:
    from online_aug.recipe import Recipe

# torch and diffusers, whose import takes seconds, come after this process is tied to the trainer,
# and diffusers only where an image is left to make.

_log = logging.getLogger("online_aug.generate")  # this module runs as __main__


def main(argv: Sequence[str]) -> int:
    """Serve one plan; failures are told to the trainer and end with a status of their own."""
    die_with_parent()
    lifeline = Lifeline()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("online_aug").setLevel(logging.INFO)
    config_path, place = argv
    lifeline.tell(Status(state="loading"))
    try:
        serve(Path(config_path), Place.model_validate_json(place), lifeline)
    except (UserError, CacheError) as error:
        lifeline.tell(Failed(reason=str(error), is_final=True))
        return 2
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        lifeline.tell(Failed(reason=reason, is_final=False))
        raise  # the traceback goes to the log
    return 0


def serve(config_path: Path, place: Place, lifeline: Lifeline) -> None:
    """Make what the cache lacks of a run's plan, until it is whole or the trainer says stop.

    Raises:
        UserError: If model or data cannot be used.
        CacheError: If the cache cannot.
    """
    import torch

    from online_aug.dataloader.sources import load_splits
    from online_aug.recipe import Recipe

    torch.set_num_threads(place.threads)
    config = load_config(config_path)
    recipe = Recipe(config, load_splits(config.data), place.device)
    store = open_store(config, recipe.splits.train)
    _log.info("cache: images are stored as %s", store.codec)
    if _is_whole(recipe, store):
        lifeline.tell(Status(state="finished", reused=len(recipe.plan)))
        return
    from online_aug.generation.service import Service
    from online_aug.generation.sharing import share_device
    from online_aug.gpu_lock import sole_generator
    from online_aug.workload import load_generator, work_of

    with sole_generator(place.device), closing(load_generator(recipe)) as generator:
        sharing = share_device(generator, place.device, place.share)
        work = work_of(recipe, place.number, place.count)
        Service(work, store, sharing, lifeline).run()


def _is_whole(recipe: "Recipe", store: Store) -> bool:
    """Nothing is left to make, and nothing else will be asked for."""
    if recipe.saliency.follows_classifier:
        return False
    from online_aug.generation.order import part_of

    part = part_of(recipe.plan, recipe.config.schedule)
    status = store.status([request.key for request in part])
    return not {"free", "claimed"} & set(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
