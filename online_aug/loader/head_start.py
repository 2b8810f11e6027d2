"""The wait before the first batch, until generation is a number of images ahead.

A small classifier trains faster than images are made. Without a head start its first epochs have
few synthetic samples, or few images that are served again and again.
"""

import time
from collections.abc import Callable
from typing import Protocol

from online_aug.console import progress
from online_aug.loader.back_pressure import GeneratorProcess
from online_aug.loader.sampler import StopWaiting

_POLL_S = 0.25
_READY, _WAITING, _STOPPING = range(3)


class GrowingPool(Protocol):
    """The part of a `SamplePool` that a head start uses."""

    @property
    def inserts(self) -> int:
        """Images of the plan there have been to serve."""

    def refresh(self) -> None:
        """Take in what was put into the cache since the last call."""


class HeadStart:
    """Waits once, on all ranks together, until the caches hold a number of images of the plan."""

    def __init__(
        self,
        images: int,
        pool: GrowingPool,
        generator: GeneratorProcess | None,
        *,
        is_stopping: Callable[[], bool] = lambda: False,
        agree: Callable[[int], int] = lambda value: value,
    ) -> None:
        """Wait for nothing yet.

        Args:
            images: Images that the cache is to hold, `mixing.head_start`; 0 never waits.
            pool: Counts them.
            generator: Makes them; None if another rank waits, or nothing is generated.
            is_stopping: Whether to give up.
            agree: Returns the largest value that any rank passes; all ranks call it.
        """
        self._images, self._pool, self._generator = images, pool, generator
        self._is_stopping, self._agree = is_stopping, agree

    def __call__(self, planned: int) -> None:
        """Wait for as many of `planned` images as are to be there; call it before every epoch.

        It ends early if the generation processes have ended: the rest was refused, or is made
        elsewhere, or has no room. It waits no second time, and not for an empty plan.

        Raises:
            StopWaiting: On all ranks, if one of them is to stop.
            UserError: If generation cannot go on.
        """
        wanted = min(self._images, planned)
        if not wanted or (state := self._agree(self._state(wanted))) == _READY:
            return
        with progress("head start", wanted, enabled=self._generator is not None) as bar:
            while state == _WAITING:
                time.sleep(_POLL_S)
                bar.update(min(self._pool.inserts, wanted), wanted)
                state = self._agree(self._state(wanted))
            bar.update(min(self._pool.inserts, wanted), wanted)
        if state == _STOPPING:
            raise StopWaiting
        self._images = 0

    def _state(self, wanted: int) -> int:
        if self._is_stopping():
            return _STOPPING
        if self._generator is None:
            return _READY
        self._generator.check()
        has_ended = self._generator.status.state in ("finished", "full")
        self._pool.refresh()  # after the state: then all that was made is counted
        return _READY if has_ended or self._pool.inserts >= wanted else _WAITING
