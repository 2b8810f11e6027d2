"""Work beside the denoising loop: a thread, and on a GPU a stream of its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Side:
    """Does one thing after another, in the order of submission, while the caller goes on.

    What is submitted sees all that the caller has put on its device so far, and its result is
    complete when it is there.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin it or queue it; what it raises comes out of the future."""
        stream = self._stream
        if stream is None:
            return self._thread.submit(function, *args, **kwargs)
        before = torch.cuda.current_stream(stream.device).record_event()

        def run() -> T:
            with torch.cuda.stream(stream):
                stream.wait_event(before)
                result = function(*args, **kwargs)
            stream.synchronize()
            return result

        return self._thread.submit(run)

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._thread.shutdown(cancel_futures=True)
