"""States of a fine-tuning on disk: each whole or known to be damaged, the newest two kept."""

import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from online_aug.errors import UserError
from online_aug.reporting.atomic import write_atomically

_log = logging.getLogger(__name__)
KEPT = 2
_FORMAT = 1
_DIGEST_BYTES = 16
_SUFFIX = ".checkpoint"


@dataclass(frozen=True)
class Saved:
    """Where a fine-tuning goes on."""

    step: int
    """Optimizer steps done; 0 is the beginning, without a state."""
    state: Mapping[str, Any]
    """Of the learner. Order and noise of a step follow from seed and step, and need no state."""


BEGINNING = Saved(0, {})


def save_checkpoint(folder: Path, saved: Saved) -> None:
    """Write a state with its digest, so that it is there whole or not at all; older ones go.

    Args:
        folder: Of the checkpoints of one fine-tuning; made where it is missing.
        saved: Tensors, plain values and containers of them.

    Raises:
        UserError: If it cannot be written, such as to a full disk; older ones are then still there.
    """
    content = io.BytesIO()
    torch.save({"format": _FORMAT, "step": saved.step, "state": dict(saved.state)}, content)
    path = folder / f"step_{saved.step:08d}{_SUFFIX}"
    try:
        folder.mkdir(exist_ok=True)
        write_atomically(path, _digest(content.getbuffer()) + content.getbuffer())
    except OSError as error:
        raise UserError(
            f"finetune.path must have room for {path}, got {error.strerror}: the same command goes "
            "on from the checkpoint before once it has"
        ) from error
    kept = _newest_first(folder)[:KEPT]
    for other in folder.iterdir():
        if other not in kept:  # also what a killed process left half written
            other.unlink()


def newest_checkpoint(folder: Path) -> Saved:
    """The last state that was written; the beginning where there is none that can be read.

    One that is damaged or of another version is said in a line of the log and passed over.
    """
    for path in _newest_first(folder):
        try:
            return _read(path)
        except (OSError, ValueError) as error:
            _log.warning("fine-tuning does not go on from %s: %s", path, error)
    return BEGINNING


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step_*{_SUFFIX}"), reverse=True)


def _read(path: Path) -> Saved:
    content = path.read_bytes()
    if _digest(content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
        raise ValueError("it is damaged")
    found = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), map_location="cpu", weights_only=True)
    if found["format"] != _FORMAT:
        raise ValueError(f"it is of another version ({found['format']}, {_FORMAT} here)")
    return Saved(found["step"], found["state"])


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
