"""How fast images are made, with nothing kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from online_aug.errors import UserError
from online_aug.generation.autoencoding import TOGETHER
from online_aug.generation.work import Generates, Work
from online_aug.records import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Speed:
    """So many images in so many seconds."""

    images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        """0 where no time passed."""
        return self.images / self.seconds if self.seconds else 0.0


def measure_speed(
    work: Work,
    generator: Generates,
    *,
    seconds: float,
    is_stopping: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Speed:
    """Images a second once the first are finished, all slots taken all the time.

    The plan is gone through in its order, and again with other noise where it is short.

    Args:
        work: Whose images are made, and forgotten.
        generator: Makes them; what is in flight at the end is dropped.
        seconds: How long to look, at least; always until another image is finished.
        is_stopping: Ends it early.
        clock: Tells seconds.

    Raises:
        UserError: If none of the plan can be prepared.
    """
    waiting = _endless(_accepted(work))
    images, started, latest = 0, 0.0, 0.0
    is_warm = False
    while not is_stopping() and (not images or latest - started < seconds):
        while generator.room >= TOGETHER:
            generator.submit(list(islice(waiting, TOGETHER)), work.prepare)
        if finished := len(generator.step()):
            latest = clock()
            images += finished if is_warm else 0
            started = started if is_warm else latest
            is_warm = True
    generator.drop()
    return Speed(images=images, seconds=latest - started)


def _accepted(work: Work) -> list[GenerationRequest]:
    accepted = [request for request in work.plan if work.refusal(request) is None]
    if not accepted:
        reason = work.refusal(work.plan[0]) if work.plan else "it is empty"
        raise UserError(f"plan must hold an image that the method accepts, got none: {reason}")
    return accepted


def _endless(plan: Sequence[GenerationRequest]) -> Iterator[GenerationRequest]:
    for times in count():
        for request in plan:
            yield replace(request, noise_seed=(request.noise_seed + times) % 2**63)
