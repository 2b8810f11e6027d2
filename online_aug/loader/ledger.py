"""The ledger of a run: how every slot was filled, nine bytes a slot.

Each rank writes its own files, one for each epoch that it began or resumed. Read together they
give the sequence of the whole run, which `run.replay` serves again.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from online_aug.errors import UserError, one_line
from online_aug.loader.slots import Kind, Slot

LEDGER_FOLDER = "ledger"
"""Folder of the ledger in the run directory."""
ROW = np.dtype([("index", "<u4"), ("kind", "u1"), ("number", "<i4")])
"""Real image, `Kind`, and number of the request, which is -1 if the real image was served."""
_PART = re.compile(r"epoch(\d+)-rank(\d+)-step(\d+)\.npy")

Rows = Shaped[np.ndarray, " slots"]
Steps = Shaped[np.ndarray, "steps batch"]


class LedgerWriter:
    """Writes one rank's part of the ledger."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        """Write into `folder`; None writes nothing."""
        self._folder, self._rank = folder, rank
        self._path: Path | None = None
        self._rows: list[tuple[int, Kind, int]] = []

    def begin(self, epoch: int, step: int) -> None:
        """Begin a file, and remove what an earlier launch wrote from this step on."""
        self._rows = []
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for path, (part_epoch, rank, first) in _parts(self._folder).items():
            if rank == self._rank and (part_epoch, first) >= (epoch, step):
                path.unlink()
        self._path = self._folder / f"epoch{epoch:04d}-rank{self._rank}-step{step}.npy"

    def add(self, slots: Sequence[Slot], kinds: Sequence[Kind]) -> None:
        """Note how the slots of a batch were filled."""
        self._rows += map(_row, slots, kinds)

    def save(self) -> None:
        """Write the file with all rows noted so far; it is replaced as a whole."""
        if self._path is None or not self._rows:
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            np.save(file, np.array(self._rows, dtype=ROW))
        fresh.rename(self._path)


class Ledger:
    """Reads what all ranks were served, whatever their number and however often they resumed."""

    def __init__(self, folder: Path, *, batch_size: int, steps: int) -> None:
        """Find the files.

        Args:
            folder: Folder of the ledger.
            batch_size: Slots in a step, over all ranks.
            steps: Steps in an epoch.
        """
        self._folder, self._batch_size, self._steps = folder, batch_size, steps
        self._parts: defaultdict[int, defaultdict[int, dict[int, Path]]]
        self._parts = defaultdict(lambda: defaultdict(dict))
        for path, (epoch, rank, first) in _parts(folder).items():
            self._parts[epoch][first][rank] = path

    def epoch(self, number: int) -> Rows:
        """Return the slots of an epoch in their global order, `steps * batch_size` rows of `ROW`.

        Raises:
            UserError: If some are missing or cannot be read.
        """
        found = np.zeros((0, self._batch_size), ROW)
        parts: dict[int, dict[int, Path]] = self._parts.get(number, {})
        for first in sorted(parts):
            if first > len(found):
                break
            found = np.concatenate([found[:first], self._steps_of_all(parts[first])])
        if len(found) != self._steps:
            raise UserError(
                f"run.replay must hold the whole ledger, {self._folder} has {len(found)} of the "
                f"{self._steps} steps of epoch {number + 1}"
            )
        return found.reshape(-1)

    def numbers(self, epochs: int) -> list[int]:
        """Return every request that was served in the first `epochs` epochs, each once."""
        served = [self.epoch(number)["number"] for number in range(epochs)]
        return [int(n) for n in np.unique(np.concatenate(served)) if n >= 0]

    def _steps_of_all(self, files: dict[int, Path]) -> Steps:
        size = self._batch_size // len(files)
        by_rank = [_read(files[rank]) for rank in sorted(files)]
        steps = min(len(rows) for rows in by_rank) // size  # a rank may have written more
        return np.concatenate(
            [rows[: steps * size].reshape(steps, size) for rows in by_rank], axis=1
        )


def _parts(folder: Path) -> dict[Path, tuple[int, int, int]]:
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
