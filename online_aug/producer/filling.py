"""Making the images of a plan without a trainer: fill a cache, or measure the speed."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice

from cache import Store
from cache.text import byte_size
from online_aug.console import Tally, progress, rate
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.generation.vae import VAE_BATCH_SIZE
from online_aug.loader.pool import pin
from online_aug.processes import Interrupt
from online_aug.producer.messages import Status
from online_aug.producer.service import Service
from online_aug.producer.standing import standing_of
from online_aug.producer.work import ImageEngine, Work, load_generator, work_of
from online_aug.request import GenerationRequest


def make_missing(
    experiment: Experiment, store: Store, interrupt: Interrupt, title: str = "filling"
) -> bool:
    """Make the images of a plan that a cache lacks, until interrupted; False if it lacks none.

    Args:
        experiment: Fine-tuned, its saliency maps made.
        store: Images of the plan stay in it; others may be evicted.
        interrupt: Its signals end the work; what is finished by then is stored.
        title: What the progress bar says is done.

    Raises:
        UserError: If the cache is full before the end.
    """
    found = standing_of(experiment, store)
    if not found.missing:
        return False
    work = work_of(experiment, there=found.there)
    pin(store, experiment.plan)
    with (
        closing(load_generator(experiment)) as generator,
        progress(title, found.missing) as bar,
    ):
        display = FillDisplay(bar, store, interrupt, int(found.there.sum()))
        Service(replace(work, max_ahead=None), store, generator, display).run()
    if display.status.state == "full":
        raise UserError(
            f"cache.path must have room for the plan, {store.path} is full after {bar.done} of "
            f"{bar.total} images; raise cache.max_gib, free disk space, or name another"
        )
    return True


class FillDisplay:
    """Takes the trainer's place: serves nothing, shows the progress, and stops at a signal."""

    served = 0
    saliency_version = None
    class_losses = None

    def __init__(
        self, bar: Tally, store: Store, interrupt: Interrupt, reused_before: int = 0
    ) -> None:
        """Take what is shown.

        Args:
            bar: The progress bar.
            store: The cache that grows.
            interrupt: The signals that end the work.
            reused_before: Images of the plan that the cache had before, which count as reused.
        """
        self._bar, self._store, self._interrupt = bar, store, interrupt
        self._reused_before = reused_before
        self.status = Status(state="loading")

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has come."""
        return self._interrupt.received is not None

    def tell(self, status: Status) -> None:
        """Show the state of the work."""
        self.status = status
        reused = max(0, status.reused - self._reused_before)
        done = status.generated + status.rejected + reused
        self._bar.advance(done - self._bar.done, note=self._note(status))

    def _note(self, status: Status) -> str:
        doing = f"{rate(status.images_per_s)} images/s"
        if status.state == "waiting":
            doing = "waiting for another process"
        parts = [doing, _rejections(status.rejected_by_reason), _size_of(self._store)]
        return ", ".join(part for part in parts if part)


def describe_plan(experiment: Experiment, store: Store) -> str:
    """Say in one line how much of an experiment's plan a cache has."""
    found = standing_of(experiment, store)
    rejected = f", {found.rejected} rejected" if found.rejected else ""
    there = f"{found.present} of the plan's {found.planned} images"
    return f"cache {store.path}: {there}{rejected}, {_size_of(store)} in all"


def _rejections(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    named = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"rejected: {named}"


def _size_of(store: Store) -> str:
    return byte_size(store.stats()["stored_bytes"])


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How many images were made in how many seconds."""

    images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        """Images a second; 0 if no time has passed."""
        return self.images / self.seconds if self.seconds else 0.0


def measure_speed(
    work: Work,
    engine: ImageEngine,
    *,
    seconds: float,
    is_stopping: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Speed:
    """Measure how fast images are made, all slots taken, from the first finished image on.

    The plan is gone through in its order, and again with other noise if it is too short. Nothing is
    stored.

    Args:
        work: Says which images to make.
        engine: Makes them; what is in flight at the end is dropped.
        seconds: Least time to measure; it always goes on until another image is finished.
        is_stopping: Ends it early.
        clock: Tells seconds.

    Raises:
        UserError: If no request of the plan can be prepared.
    """
    waiting = _accepted(work)
    images, started, latest = 0, 0.0, 0.0
    is_warm = False
    while not is_stopping() and (not images or latest - started < seconds):
        while engine.room >= VAE_BATCH_SIZE:
            engine.submit(list(islice(waiting, VAE_BATCH_SIZE)), work.prepare)
        if finished := len(engine.step()):
            latest = clock()
            images += finished if is_warm else 0
            started = started if is_warm else latest
            is_warm = True
    engine.drop()
    return Speed(images=images, seconds=latest - started)


def _accepted(work: Work) -> Iterator[GenerationRequest]:
    reason: str | None = "it is empty"
    for times in count():
        accepted = 0
        for request in work.plan:
            reason = work.refusal(request)
            if reason is None:
                accepted += 1
                yield replace(request, noise_seed=(request.noise_seed + times) % 2**63)
        if not accepted:
            raise UserError(f"plan must hold an image that the method accepts, got none: {reason}")
