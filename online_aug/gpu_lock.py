"""One generator a GPU: two at once would halve each other's speed and may not fit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from online_aug.errors import UserError
from online_aug.locking import alone, lock_of_user

PATIENCE_S = 10.0
"""A generator whose trainer was killed ends within 5 s, and the GPU is free again."""


@contextmanager
def sole_generator(device: str) -> Iterator[None]:
    """Hold a device for generation among the processes of this user; a CPU is anyone's.

    Raises:
        UserError: If another process generates on this GPU and does not end soon.
    """
    with ExitStack() as stack:
        if device != "cpu":
            gpu = gpu_id(device)
            try:
                stack.enter_context(alone(lock_of_user(gpu), PATIENCE_S))
            except BlockingIOError:
                raise UserError(
                    "devices.generate must be a GPU on which no other process generates, got "
                    f"{device} ({gpu}); name another, or none, or wait for the other run"
                ) from None
        yield


def gpu_id(device: str) -> str:
    """Of the GPU itself, whatever it is called in this process."""
    return str(torch.cuda.get_device_properties(device).uuid)
