"""Prepare generation, once for all: fine-tuned model, judge, foregrounds, strengths.

Each is looked for, made if it is missing, and kept for later seeds and runs. Of several processes
that need the same, one makes it and the others wait.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from cache import content_digest
from online_aug.config.sections import ScheduleConfig
from online_aug.console import open_console, print_line
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.experiment.judge import ensure_judge
from online_aug.files import alone, lock_of_user
from online_aug.finetuning.run import ensure_finetuned
from online_aug.loader.pool import open_store
from online_aug.processes import Interrupt


def prepare_generation(experiment: Experiment, devices: Sequence[str] = ()) -> None:
    """Make what is needed before the plan of an experiment is known, unless it is there.

    Args:
        experiment: Checked.
        devices: Devices that fine-tune together; see `ensure_finetuned`.

    Raises:
        UserError: If something cannot be made, or not be kept.
        SystemExit: If a signal came meanwhile.
    """
    ensure_finetuned(experiment, devices)
    ensure_judge(experiment)
    ensure_saliency(experiment)
    ensure_strengths(experiment)


def ensure_strengths(experiment: Experiment) -> None:
    """Make the trials of strengths that are learned, and record what the gate said of them.

    Their images are served like all others of the plan.

    Raises:
        UserError: If the generator cannot be loaded or the cache has no room.
        SystemExit: With the status of the signal that interrupted it; the next call goes on.
    """
    if experiment.strengths.are_known:
        return
    place = str(experiment.config.cache.path.resolve()).encode()
    with alone(lock_of_user(f"strengths-{content_digest(place)}")):
        if not experiment.strengths.are_known:
            _try_strengths(experiment)


def _try_strengths(experiment: Experiment) -> None:
    from online_aug.producer.filling import make_missing  # loads the diffusion libraries

    whole = experiment.config.model_copy(update={"schedule": ScheduleConfig()})
    trials = replace(experiment, config=whole, only_trials=True)
    with open_store(experiment.config, experiment.splits.train) as store, Interrupt() as interrupt:
        make_missing(trials, store, interrupt, title="trying strengths")
        if interrupt.received is not None:
            print_line(open_console(), "interrupted: the same command goes on")
            sys.exit(interrupt.exit_status)
        experiment.strengths.keep(store)
    print_line(open_console(), f"learned strengths: {experiment.strengths}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
