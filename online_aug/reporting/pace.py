"""How fast training is and how long it still takes, from what was seen so far."""

from collections import deque

WINDOW_S = 5.0


class Pace:
    """Speed over the last seconds, and time left at the mean speed, pauses between epochs included.

    Knows no clock: every reading brings its own time in seconds.
    """

    def __init__(self, total_steps: int) -> None:
        """Wait for the first reading."""
        self._total_steps = total_steps
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._epoch = -1
        self.images_per_s: float | None = None
        self.left_s: float | None = None

    def read(self, now_s: float, epoch: int, steps: int, images: int) -> None:
        """Take a reading.

        Args:
            now_s: Of a clock that never goes back.
            epoch: A new one starts the image count again.
            steps: Since the start of the run.
            images: Since the start of the epoch.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._recent.clear()
        self._recent.append((now_s, images))
        while len(self._recent) > 2 and now_s - self._recent[1][0] >= WINDOW_S:
            self._recent.popleft()
        began_s, before = self._recent[0]
        if now_s > began_s:
            self.images_per_s = (images - before) / (now_s - began_s)
        self._estimate(now_s, steps)

    def _estimate(self, now_s: float, steps: int) -> None:
        if self._first is None:
            self._first = (now_s, steps)
        began_s, first_step = self._first
        if steps > first_step:
            per_step_s = (now_s - began_s) / (steps - first_step)
            self.left_s = per_step_s * max(self._total_steps - steps, 0)
