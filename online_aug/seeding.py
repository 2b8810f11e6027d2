"""Randomness as a function of what it is for: no global state, no sums of seeds.

Using a module without leaving a trace in it.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def numpy_rng(*entropy: int | str) -> np.random.Generator:
    """A generator that depends on every part of `entropy`, in order, by a digest of them all.

    NumPy's own list of seeds would not do: to it `[3]` and `[3, 0]` are the same.
    """
    return np.random.default_rng(_digest(entropy, 16))


def seed_of(*entropy: int | str) -> int:
    """A seed below 2**62 that depends on all of `entropy`; a tenth of a generator's price."""
    return _digest(entropy, 8) >> 2


def _digest(entropy: tuple[int | str, ...], size: int) -> int:
    parts = json.dumps([part if isinstance(part, str) else int(part) for part in entropy])
    digest = hashlib.blake2b(parts.encode(), digest_size=size).digest()
    return int.from_bytes(digest, "little")


def torch_rng(seed: int) -> torch.Generator:
    """A CPU generator: the same numbers on every machine and device."""
    return torch.Generator("cpu").manual_seed(seed)


@contextmanager
def numpy_global_state(rng: np.random.Generator) -> Iterator[None]:
    """Let a library that draws from NumPy's global state draw from `rng`; restored on exit."""
    saved = np.random.get_state()  # noqa: NPY002 - timm's Mixup knows no other source
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(saved)  # noqa: NPY002


@contextmanager
def library_state(seed: int) -> Iterator[None]:
    """Let transforms that draw from Python's, NumPy's and PyTorch's global state draw by `seed`.

    All three are restored on exit.
    """
    saved = random.getstate()
    rng = np.random.default_rng(seed)
    random.seed(int(rng.integers(2**32)))
    try:
        with numpy_global_state(rng), torch_global_state(int(rng.integers(2**32))):
            yield
    finally:
        random.setstate(saved)


@contextmanager
def torch_global_state(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let layers that draw from PyTorch's global state (initial weights, dropout) draw from `seed`.

    The state of the CPU and of `device` is restored on exit; other devices are not touched.
    """
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


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


def recorded(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """Record a module's call in TorchScript at the shapes of `inputs`, with its present weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are constant: the shapes
        traced = torch.jit.trace(module, inputs, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
    return frozen
