"""Randomness as a function of what it is for, and calls that leave no trace in global state.

No global generator is used and no seeds are added up: every stream is named by what it is drawn
for. Importing this module does not load PyTorch.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def numpy_rng(*entropy: int | str) -> np.random.Generator:
    """Return a generator that depends on every part of `entropy` and on their order.

    The parts are hashed: to NumPy's own list of seeds `[3]` and `[3, 0]` are the same.
    """
    return np.random.default_rng(_digest(entropy, 16))


def seed_of(*entropy: int | str) -> int:
    """Return a seed below 2**62 that depends on every part of `entropy` and on their order.

    It costs a tenth of `numpy_rng`.
    """
    return _digest(entropy, 8) >> 2


def _digest(entropy: tuple[int | str, ...], size: int) -> int:
    parts = json.dumps([part if isinstance(part, str) else int(part) for part in entropy])
    digest = hashlib.blake2b(parts.encode(), digest_size=size).digest()
    return int.from_bytes(digest, "little")


def torch_rng(seed: int) -> "torch.Generator":
    """Return a CPU generator, which draws the same numbers on every machine and device."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


@contextmanager
def numpy_global_state(rng: np.random.Generator) -> Iterator[None]:
    """Make a library that uses NumPy's global state draw from `rng`; restore the state on exit."""
    saved = np.random.get_state()  # noqa: NPY002 - timm's Mixup knows no other source
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(saved)  # noqa: NPY002


@contextmanager
def library_state(seed: int) -> Iterator[None]:
    """Seed the global states of Python, NumPy and PyTorch for a library; restore them on exit."""
    saved = random.getstate()
    rng = np.random.default_rng(seed)
    random.seed(int(rng.integers(2**32)))
    try:
        with numpy_global_state(rng), torch_global_state(int(rng.integers(2**32))):
            yield
    finally:
        random.setstate(saved)


@contextmanager
def torch_global_state(seed: int, device: "torch.device | None" = None) -> Iterator[None]:
    """Seed PyTorch's global state for layers that draw from it, such as dropout.

    The states of the CPU and of `device` are restored on exit; other devices are not touched.
    """
    import torch

    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def evaluation_mode(module: "nn.Module") -> Iterator[None]:
    """Put every part into evaluation mode; on exit give each part the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def untouched(module: "nn.Module", device: "torch.device") -> Iterator[None]:
    """Evaluate without gradients; on exit restore modes and PyTorch's random states.

    Running statistics do not move in evaluation mode, and without a graph no gradient is written.
    """
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluation_mode(module), torch.no_grad():
        yield


def recorded(module: "nn.Module", inputs: "tuple[Tensor, ...]") -> "torch.jit.ScriptModule":
    """Record a module's call in TorchScript at the shapes of `inputs`, with its present weights."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are constant: the shapes
        traced = torch.jit.trace(module, inputs, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
    return frozen
