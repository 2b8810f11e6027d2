"""The ledger of a run: what every slot was filled with, nine bytes a slot."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from online_aug.dataloader.slots import Kind, Slot
from online_aug.errors import UserError, one_line

ROW = np.dtype([("index", "<u4"), ("kind", "u1"), ("number", "<i4")])
"""Real image, `Kind`, and request of the plan, -1 where the real image was served."""
_PART = re.compile(r"epoch(\d+)-rank(\d+)-step(\d+)\.npy")

Rows = Shaped[np.ndarray, " slots"]
Steps = Shaped[np.ndarray, "steps batch"]


class LedgerWriter:
    """One rank's ledger; a part is a file, from the step at which an epoch was begun or resumed."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        """Write below `folder`, nothing if None."""
        self._folder, self._rank = folder, rank
        self._path: Path | None = None
        self._rows: list[tuple[int, Kind, int]] = []

    def begin(self, epoch: int, step: int) -> None:
        """Begin a part; what an earlier launch wrote from here on is served anew."""
        self._rows = []
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for path, (part_epoch, rank, first) in _parts(self._folder).items():
            if rank == self._rank and (part_epoch, first) >= (epoch, step):
                path.unlink()
        self._path = self._folder / f"epoch{epoch:04d}-rank{self._rank}-step{step}.npy"

    def add(self, slots: Sequence[Slot], kinds: Sequence[Kind]) -> None:
        """Note what the slots of a batch got in the end."""
        self._rows += map(_row, slots, kinds)

    def save(self) -> None:
        """Write the part so far; whole, or not at all."""
        if self._path is None or not self._rows:
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            np.save(file, np.array(self._rows, dtype=ROW))
        fresh.rename(self._path)


class Ledger:
    """What all ranks of a run were served, whatever their number and however often it resumed."""

    def __init__(self, folder: Path, *, batch_size: int, steps: int) -> None:
        """Find the parts.

        Args:
            folder: Of the ledger.
            batch_size: Over all ranks.
            steps: Of an epoch.
        """
        self._folder, self._batch_size, self._steps = folder, batch_size, steps
        self._parts: defaultdict[int, defaultdict[int, dict[int, Path]]]
        self._parts = defaultdict(lambda: defaultdict(dict))
        for path, (epoch, rank, first) in _parts(folder).items():
            self._parts[epoch][first][rank] = path

    def epoch(self, number: int) -> Rows:
        """The slots of an epoch in their global order, `steps * batch_size` rows of `ROW`.

        Raises:
            UserError: If some are missing or cannot be read.
        """
        found = np.zeros((0, self._batch_size), ROW)
        parts: dict[int, dict[int, Path]] = self._parts.get(number, {})
        for first in sorted(parts):
            if first > len(found):
                break
            found = np.concatenate([found[:first], self._block(parts[first])])
        if len(found) != self._steps:
            raise UserError(
                f"run.replay must hold the whole ledger, {self._folder} has {len(found)} of the "
                f"{self._steps} steps of epoch {number + 1}"
            )
        return found.reshape(-1)

    def numbers(self, epochs: int) -> list[int]:
        """Every request of the plan that was served in the first epochs, each once."""
        served = [self.epoch(number)["number"] for number in range(epochs)]
        return [int(n) for n in np.unique(np.concatenate(served)) if n >= 0]

    def _block(self, files: dict[int, Path]) -> Steps:
        """Steps that all ranks have, each with the slots of all ranks."""
        size = self._batch_size // len(files)
        by_rank = [_read(files[rank]) for rank in sorted(files)]
        steps = min(len(rows) for rows in by_rank) // size
        return np.concatenate(
            [rows[: steps * size].reshape(steps, size) for rows in by_rank], axis=1
        )


def _parts(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Epoch, rank and first step of every part."""
    named = {path: _PART.fullmatch(path.name) for path in sorted(folder.glob("*.npy"))}
    return {
        path: (int(found[1]), int(found[2]), int(found[3]))
        for path, found in named.items()
        if found
    }


def _read(path: Path) -> Rows:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a part of a ledger: {one_line(error)}") from None
    if rows.dtype != ROW or rows.ndim != 1:
        raise UserError(f"{path} must be a part of a ledger, got an array of {rows.dtype}")
    return np.asarray(rows)


def _row(slot: Slot, kind: Kind) -> tuple[int, Kind, int]:
    return slot.index, kind, -1 if kind is Kind.STARVED else slot.number
