"""The training loop of every part: steps that save, resume and say where they are."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

SAVE_STEPS = 250


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the result, beside the code."""

    work: Path
    steps: int
    vae_steps: int
    batch_size: int
    lr: float
    digits: int
    birds: int
    seed: int
    device: str
    autoencoder: Path | None = None
    """A model directory whose autoencoder is taken, and trained on for `vae_steps`."""
    start: Path | None = None
    """A model directory of the same task whose denoiser and words are trained on."""


class Step:
    """One optimizer step: `finish(loss)` does the backward pass and the update."""

    def __init__(self, number: int, optimizer: torch.optim.Optimizer) -> None:
        self.number = number
        self.loss = math.nan
        self._optimizer = optimizer

    def finish(self, loss: Tensor) -> None:
        """Backward pass, clipped gradients, update."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimizer.step()
        self.loss = float(loss.detach())


def training_steps(
    name: str,
    parts: Any,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    total: int,
    lr: float,
) -> Iterator[Step]:
    """Numbered steps with learning rate, checkpoints, losses on disk and a progress bar."""
    if not isinstance(parts, dict):
        parts = {"model": parts, "optimizer": optimizer}
    checkpoint = settings.work / f"{name}.pt"
    first = _resume(checkpoint, parts)
    losses: list[float] = []
    started = time.monotonic()
    for number in (bar := tqdm(range(first, total), desc=name, initial=first, total=total)):
        for group in optimizer.param_groups:
            group["lr"] = lr * _warm_flat_falling(number / total)
        step = Step(number, optimizer)
        yield step
        losses.append(step.loss)
        if (number + 1) % SAVE_STEPS == 0 or number + 1 == total:
            _log(settings.work, name, number + 1, losses, time.monotonic() - started)
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}")
            losses, started = [], time.monotonic()
            _save(checkpoint, parts, number + 1)


def _warm_flat_falling(share: float) -> float:
    """Rate over its peak: flat for most of the way, so that a longer training goes on from it."""
    falling = max(0.0, (share - 0.7) / 0.3)
    return min(1.0, share / 0.02) * (0.5 + 0.5 * math.cos(math.pi * falling))


def _save(path: Path, parts: dict[str, Any], step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{k: part.state_dict() for k, part in parts.items()}}, partial)
    partial.replace(path)


def _resume(path: Path, parts: dict[str, Any]) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


def _log(work: Path, name: str, step: int, losses: list[float], seconds: float) -> None:
    line = {"part": name, "step": step, "loss": sum(losses) / len(losses), "seconds": seconds}
    with (work / "losses.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
