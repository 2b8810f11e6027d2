"""What the time of a process goes into."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Shares:
    """Seconds by what they were spent on; each kind of work is done by one thread alone."""

    def __init__(self, *kinds: str) -> None:
        self.seconds = dict.fromkeys(kinds, 0.0)
        self.times = dict.fromkeys(kinds, 0)
        """How often each was done."""

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Count what is done inside."""
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += perf_counter() - started
            self.times[kind] += 1

    def reset(self) -> None:
        """Begin anew."""
        for kind in self.seconds:
            self.seconds[kind], self.times[kind] = 0.0, 0
