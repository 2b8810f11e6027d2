"""Using a module without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode; on exit each has the mode it had, frozen parts included."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """`evaluation_mode`, without a graph, and with PyTorch's random states restored on exit.

    Running statistics do not move in evaluation mode, and without a graph no gradient is written.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluation_mode(module), torch.no_grad():
        yield
