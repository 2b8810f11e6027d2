"""The ledger of a run: what every slot was filled with, nine bytes a slot.

The probability of a synthetic sample: fixed, or changing over the epochs, or by class.

The slots of every batch: which real image is there, and which ask for a synthetic one.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from online_aug.config.mixing import MixingConfig
from online_aug.data.image_sets import ImageSet
from online_aug.errors import UserError, one_line
from online_aug.seeding import numpy_rng


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability:
    """Of a synthetic sample in place of a real one."""

    start: float
    """In the first epoch."""
    end: float
    """In the last one."""
    epochs: int
    """Of the run."""
    is_cosine: bool = False
    """From one to the other along half a cosine instead of a line."""
    by_image: Float[np.ndarray, " n"] | None = None
    """Of each real image, NaN where its class has none of its own."""

    def at(self, epoch: int) -> float:
        """Of images whose class has none of its own."""
        done = min(1.0, epoch / max(1, self.epochs - 1))
        share = (1 - math.cos(math.pi * done)) / 2 if self.is_cosine else done
        return self.start + (self.end - self.start) * share

    def of(self, epoch: int, images: Int[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        """Of the slots of these real images."""
        usual = self.at(epoch)
        if self.by_image is None:
            return np.full(len(images), usual)
        own = self.by_image[images]
        return np.where(np.isnan(own), usual, own)


def probability_of(mixing: MixingConfig, images: ImageSet, epochs: int) -> Probability:
    """What the configuration asks for.

    Args:
        mixing: Says how probable.
        images: Of the training set.
        epochs: Of the run.

    Raises:
        UserError: If a class is named that there is not.
    """
    end = mixing.final_probability
    return Probability(
        start=mixing.synthetic_probability,
        end=mixing.synthetic_probability if end is None else end,
        epochs=epochs,
        is_cosine=mixing.probability_schedule == "cosine",
        by_image=_by_image(mixing, images) if mixing.class_probability else None,
    )


def _by_image(mixing: MixingConfig, images: ImageSet) -> Float[np.ndarray, " n"]:
    names, own = images.class_names, mixing.class_probability
    unknown = sorted(own.keys() - set(names))
    if unknown:
        raise UserError(
            f"mixing.class_probability must name classes of data.source, got {unknown[0]!r}; "
            f"known: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        )
    of_class = np.array([own.get(name, np.nan) for name in names])
    return np.asarray(of_class[np.asarray(images.labels)])


class Kind(IntEnum):
    """How a slot was filled."""

    REAL = 0
    FRESH = 1
    CACHED = 2
    STARVED = 3
    """Planned synthetic, but nothing was ready: the real image."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One sample of a batch."""

    epoch: int
    position: int
    """In the epoch's global order; seeds the transform."""
    index: int
    """The real image at this position."""
    kind: Kind
    number: int
    """Place of the request in the plan, -1 for a real image."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What decides the global batches of every epoch, whatever the number of ranks."""

    num_images: int
    batch_size: int
    """Over all ranks."""
    repeats: int
    seed: int
    probability: Probability
    """Of a synthetic sample; its start, below 1, where they are added."""
    adds: bool = False
    """Synthetic samples come beside all the real ones, not in the place of some."""

    @property
    def steps(self) -> int:
        """Batches an epoch; the last images that fill none are left out, they change each epoch."""
        return max(1, self._pass_length * self.repeats // self.batch_size)

    def indices(self, epoch: int) -> np.ndarray:
        """Real image of each position, `steps * batch_size` in all.

        Every image once a repeat; where synthetic samples are added, these go round the images.
        """
        return self._entries(epoch) % self.num_images

    def is_synthetic(self, epoch: int) -> np.ndarray:
        """Which positions ask for a synthetic sample."""
        if self.adds:
            return np.asarray(self._entries(epoch) >= self.num_images)
        wanted = self.probability.of(epoch, self.indices(epoch))
        steps = range(self.steps)
        draws = [numpy_rng("mix", self.seed, epoch, s).random(self.batch_size) for s in steps]
        return np.asarray(np.concatenate(draws) < wanted)

    @property
    def _pass_length(self) -> int:
        """Slots a repeat: the real images, and what is added to them."""
        share = self.probability.start
        added = self.num_images * share / (1 - share) if self.adds else 0
        return self.num_images + round(added)

    def _entries(self, epoch: int) -> np.ndarray:
        """A real image by its number, or an added sample by a number beyond theirs."""
        length = self.steps * self.batch_size
        passes = math.ceil(length / self._pass_length)
        orders = [
            numpy_rng("order", self.seed, epoch, number).permutation(self._pass_length)
            for number in range(passes)
        ]
        return np.concatenate(orders)[:length]


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
