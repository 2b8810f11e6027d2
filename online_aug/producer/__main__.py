"""The generation process: `python -m online_aug.producer RUN/config.yaml PLACEMENT`.

The supervisor starts it, with the trainer at the other end of standard input and output. It imports
its libraries while the trainer prepares the run, and begins when it is told that all is there.
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path

from cache import CacheError
from online_aug.config.loading import load_config
from online_aug.cores import compute_with
from online_aug.errors import PassingError, UserError
from online_aug.producer.messages import Failed, Placement, Status, TrainerPipe, tie_to_parent

# torch and diffusers take seconds to import. They come after this process is tied to the trainer,
# and diffusers only while there is time, or if an image is left to make.

_log = logging.getLogger("online_aug.producer")


def main(argv: Sequence[str]) -> int:
    """Work through one plan; tell the trainer of a failure and return an exit status for it."""
    tie_to_parent()
    trainer = TrainerPipe()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("online_aug").setLevel(logging.INFO)
    config_path, placement = argv
    trainer.tell(Status(state="loading"))
    try:
        import_libraries(trainer)
        if trainer.wait_to_begin():
            make_images(Path(config_path), Placement.model_validate_json(placement), trainer)
    except (UserError, CacheError) as error:
        trainer.tell(Failed(reason=str(error), is_final=not isinstance(error, PassingError)))
        return 2
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        trainer.tell(Failed(reason=reason, is_final=False))
        raise  # the traceback goes to the log
    return 0


def import_libraries(trainer: TrainerPipe) -> None:
    """Import what takes seconds; the libraries of diffusion models only while the trainer prepares.

    If it has prepared the run by then, all images may be in the cache, which is looked at first.
    """
    import_module("online_aug.experiment.experiment")
    if not trainer.has_begun:
        import_module("online_aug.producer.work")


def make_images(config_path: Path, placement: Placement, trainer: TrainerPipe) -> None:
    """Make the images that the cache lacks of a run's plan, until all are there or told to stop.

    Raises:
        UserError: If model or data cannot be used.
        CacheError: If the cache cannot be used.
    """
    from online_aug.data.sources import load_splits
    from online_aug.experiment.experiment import Experiment
    from online_aug.loader.pool import open_store
    from online_aug.planning.held import held_of
    from online_aug.producer.standing import has_missing

    config = load_config(config_path)
    experiment = Experiment(config, load_splits(config.data, config.cache.path), placement.device)
    store = open_store(config, experiment.splits.train)
    _log.info("cache: images are stored as %s", store.codec)
    there = held_of(store, experiment.plan).there(len(experiment.plan))
    if not (experiment.saliency.follows_classifier or has_missing(experiment, store, there)):
        trainer.tell(Status(state="finished", reused=len(experiment.plan)))
        return
    from online_aug.distributed.devices import sole_generator
    from online_aug.producer.service import Service
    from online_aug.producer.work import load_generator, share_device, work_of

    compute_with(placement.threads, placement.device)
    with sole_generator(placement.device), closing(load_generator(experiment)) as generator:
        sharing = share_device(generator, placement.device, placement.share)
        work = work_of(experiment, placement.number, placement.count, there)
        Service(work, store, sharing, trainer).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
