"""A generator that leaves part of its device's time to another process."""

import time
from collections.abc import Callable, Sequence

import torch

from online_aug.generation.image_generator import Finished
from online_aug.generation.starting import Prepare
from online_aug.generation.work import Generates
from online_aug.records import GenerationRequest


class DutyCycle:
    """Steps, then rests long enough for the other process to have the device for its share.

    While it rests the other has the device alone, else they divide it: so the other keeps at least
    `share` of its speed. Processes on one GPU take turns, and priorities of streams count only
    within a process: pauses are what reaches across.
    """

    def __init__(
        self,
        generator: Generates,
        share: float,
        *,
        finish: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take a generator that is ready.

        Args:
            generator: Does the work.
            share: Of the time to leave to others, in [0, 1).
            finish: Waits until the device has done what it was given.
            clock: Tells seconds.
            sleep: Lets seconds pass.
        """
        self._generator, self._share = generator, share
        self._finish, self._clock, self._sleep = finish, clock, sleep

    @property
    def room(self) -> int:
        """How many more requests keep it busy."""
        return self._generator.room

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in, and what prepares them."""
        self._generator.submit(requests, prepare)

    def step(self) -> list[Finished]:
        """Go on a little, then rest; gives what is finished by then."""
        began = self._clock()
        finished = self._generator.step()
        self._finish()
        self._sleep((self._clock() - began) * self._share / (1 - self._share))
        return finished

    def drop(self) -> None:
        """Forget what is not finished."""
        self._generator.drop()


def share_device(generator: Generates, device: str, share: float) -> Generates:
    """The generator, resting where its device is shared."""
    if not share:
        return generator
    return DutyCycle(generator, share, finish=lambda: torch.cuda.synchronize(device))
