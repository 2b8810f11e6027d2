"""Work beside the denoising loop: a thread, and on a GPU a stream of its own."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class _Job(NamedTuple, Generic[T]):
    run: Callable[[], T]
    result: Future[T]


class Side(Generic[P, T]):
    """Calls one function again and again, in the order of submission, while its user goes on.

    A call sees all that the user has put on the device before it was submitted, and its result is
    complete when it is given out.
    """

    def __init__(self, name: str, device: torch.device, function: Callable[P, T]) -> None:
        self._function = function
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._jobs: deque[_Job[T]] = deque()

    @property
    def pending(self) -> list[Future[T]]:
        """Calls whose result was not given out."""
        return [job.result for job in self._jobs]

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin a call or queue it."""
        run = self._on_stream(lambda: self._function(*args, **kwargs))
        self._jobs.append(_Job(run, self._thread.submit(run)))

    def collect(self) -> list[T]:
        """Results that are there, in the order of submission.

        Raises:
            torch.OutOfMemoryError: If there was no room for the next call; it is begun again.
            Exception: Whatever the next call raised.
        """
        done: list[T] = []
        while self._jobs and self._jobs[0].result.done():
            error = self._jobs[0].result.exception()
            if error and done:
                break  # it is raised next time, and what came before it is not lost
            job = self._jobs.popleft()
            if isinstance(error, torch.OutOfMemoryError):
                self._jobs.appendleft(_Job(job.run, self._thread.submit(job.run)))
            done.append(job.result.result())
        return done

    def drop(self) -> None:
        """Forget all calls; the one that is running ends in vain."""
        for job in self._jobs:
            job.result.cancel()
        self._jobs.clear()

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self.drop()
        self._thread.shutdown()

    def _on_stream(self, function: Callable[[], T]) -> Callable[[], T]:
        stream = self._stream
        if stream is None:
            return function
        before = torch.cuda.current_stream(stream.device).record_event()

        def run() -> T:
            with torch.cuda.stream(stream):
                stream.wait_event(before)
                result = function()
            stream.synchronize()
            return result

        return run
