"""The generation process as the loader sees it, and the wait for one of its images."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from cache import Store
from online_aug.errors import UserError

_POLL_S = 0.05


class GeneratorStatus(Protocol):
    """Where the generation process stands, counted over its restarts."""

    @property
    def state(self) -> str:
        """Such as `generating` or `paused`; `full` where it has ended as the cache is."""

    @property
    def note(self) -> str:
        """Why the cache takes no more, where it is full."""

    @property
    def generated(self) -> int:
        """Images put into the cache."""

    @property
    def rejected(self) -> int:
        """Images refused by the gate."""

    @property
    def images_per_s(self) -> float:
        """While generating."""


class GeneratorProcess(Protocol):
    """What the loader asks of those who watch over the generation processes."""

    @property
    def restarts(self) -> int:
        """How often it died and was started again."""

    @property
    def status(self) -> GeneratorStatus:
        """Where it stands."""

    def start(self) -> None:
        """Start the process."""

    def check(self) -> None:
        """Restart it if it died; raise if that does not help."""

    def served(self, fresh: int) -> None:
        """Tell how many fresh images were served."""

    def publish(self, version: str) -> None:
        """Tell that there is a newer version of the saliency maps."""

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class, None where it saw none yet."""

    def stop(self) -> None:
        """End the process."""


class StopWaiting(Exception):
    """The wait for an image was given up because the run is to stop."""


class WaitFor:
    """Blocks until the request of a number is made; False if it was rejected."""

    def __init__(
        self,
        store: Store,
        keys: list[bytes],
        generator: GeneratorProcess | None,
        timeout_s: float = 600.0,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._keys = store, keys
        self._generator, self._timeout_s = generator, timeout_s
        self._is_stopping = is_stopping

    def __call__(self, number: int) -> bool:
        """Wait for one request.

        Raises:
            UserError: If it does not come in time, or never will as the cache is full.
            StopWaiting: If the run is to stop meanwhile.
        """
        until = time.monotonic() + self._timeout_s
        while time.monotonic() < until:
            full = self._why_full()  # asked first: what it is told after is in the cache
            status = self._store.status([self._keys[number]])[0]
            if status in ("present", "rejected"):
                return status == "present"
            if full is not None:
                raise UserError(
                    f"mixing.starvation: wait needs image {number} of the plan, which is not made: "
                    f"{full}; the same command then goes on"
                )
            if self._generator:
                self._generator.check()
            if self._is_stopping():
                raise StopWaiting
            time.sleep(_POLL_S)
        raise UserError(
            f"mixing.starvation: wait has waited {self._timeout_s:.0f} s for image {number} of the "
            "plan; is anything generating into this cache?"
        )

    def _why_full(self) -> str | None:
        if self._generator is None or self._generator.status.state != "full":
            return None
        return self._generator.status.note
