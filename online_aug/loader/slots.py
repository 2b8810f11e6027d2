"""The slots of a run in their order, and the ledger of how each was filled.

Each rank writes its own files of the ledger, one for each epoch that it began or resumed, nine
bytes a slot. Together they give the sequence of the run, which `run.replay` serves again.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from online_aug.config import Config
from online_aug.config.sections import MixingConfig
from online_aug.data.image_sets import ImageSet
from online_aug.documents import open_regular
from online_aug.errors import UserError, one_line
from online_aug.methods import MethodSettings, find_method
from online_aug.seeding import numpy_rng


class Kind(IntEnum):
    """How a slot was filled."""

    REAL = 0
    FRESH = 1
    """A generated image that is served for the first time in this run."""
    CACHED = 2
    """Any other generated image."""
    STARVED = 3
    """The real image, because no synthetic one was ready, or none could be composed."""
    COMPOSED = 4
    """Training images, composed without a generator."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One sample of a batch."""

    epoch: int
    position: int
    """Place in the epoch's global order; it seeds the transform."""
    index: int
    """The real image at this position."""
    kind: Kind
    number: int
    """Number of the request in the plan; -1 if no generated image is served."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability:
    """Probability that a slot is synthetic: fixed, changing over the epochs, or given by class."""

    start: float
    """Probability in the first epoch."""
    end: float
    """Probability in the last epoch."""
    epochs: int
    """Epochs of the run."""
    is_cosine: bool = False
    """Whether it changes along half a cosine instead of a line."""
    by_image: Float[np.ndarray, " n"] | None = None
    """Probability for each real image, NaN if its class has none of its own."""

    def at(self, epoch: int) -> float:
        """Return the probability for classes that have none of their own."""
        done = min(1.0, epoch / max(1, self.epochs - 1))
        share = (1 - math.cos(math.pi * done)) / 2 if self.is_cosine else done
        return self.start + (self.end - self.start) * share

    def of(self, epoch: int, images: Int[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        """Return the probability for the slots of these real images."""
        usual = self.at(epoch)
        if self.by_image is None:
            return np.full(len(images), usual)
        own = self.by_image[images]
        return np.where(np.isnan(own), usual, own)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The global batches of every epoch."""

    num_images: int
    """Real images."""
    batch_size: int
    """Slots in a step, over all ranks."""
    repeats: int
    """Times that an epoch goes through the real images."""
    seed: int
    probability: Probability
    """Probability of a synthetic sample; with `adds` its start, below 1, is used for all epochs."""
    adds: bool = False
    """Whether synthetic samples are added to the real ones instead of replacing some."""
    composed_share: float = 0.0
    """Probability that a synthetic sample is composed without a generator."""

    @property
    def steps(self) -> int:
        """Batches in an epoch; the images left over at its end differ from epoch to epoch."""
        return max(1, self.samples // self.batch_size)

    @property
    def samples(self) -> int:
        """Samples that an epoch offers, before it is cut to whole batches."""
        return self._pass_length * self.repeats

    def indices(self, epoch: int) -> Int[np.ndarray, " slots"]:
        """Return the real image at each of the `steps * batch_size` positions.

        Every image comes once in each repeat. Added synthetic samples go round the images.
        """
        return self._entries(epoch) % self.num_images

    def is_synthetic(self, epoch: int) -> Bool[np.ndarray, " slots"]:
        """Return which positions ask for a synthetic sample."""
        if self.adds:
            return np.asarray(self._entries(epoch) >= self.num_images)
        wanted = self.probability.of(epoch, self.indices(epoch))
        steps = range(self.steps)
        draws = [numpy_rng("mix", self.seed, epoch, s).random(self.batch_size) for s in steps]
        return np.asarray(np.concatenate(draws) < wanted)

    def turns(self, epoch: int) -> Int[np.ndarray, " slots"]:
        """Return which of all added samples each position asks for, counted over the epochs.

        Positions of real images have a negative number. A sample that is cut off at the end of an
        epoch is not made up for.
        """
        entries = self._entries(epoch)
        number = np.arange(len(entries)) // self._pass_length  # of the pass in this epoch
        passes = math.ceil(len(entries) / self._pass_length)
        added = entries - self.num_images
        before = (epoch * passes + number) * self.added
        return np.where(added < 0, -1, before + added)

    def kinds(self, epoch: int) -> tuple[Bool[np.ndarray, " slots"], Bool[np.ndarray, " slots"]]:
        """Return which positions ask for a generated image, and which for a composed sample."""
        wanted = self.is_synthetic(epoch)
        if self.composed_share in (0, 1):
            is_composed = np.full(len(wanted), bool(self.composed_share))
        else:
            draws = numpy_rng("composed", self.seed, epoch).random(len(wanted))
            is_composed = draws < self.composed_share
        return wanted & ~is_composed, wanted & is_composed

    @property
    def added(self) -> int:
        """Synthetic samples that are added to each pass through the real images."""
        share = self.probability.start
        return round(self.num_images * share / (1 - share)) if self.adds else 0

    @property
    def _pass_length(self) -> int:
        return self.num_images + self.added

    def _entries(self, epoch: int) -> Int[np.ndarray, " slots"]:
        length = self.steps * self.batch_size  # entries from num_images on are added samples
        passes = math.ceil(length / self._pass_length)
        orders = [
            numpy_rng("order", self.seed, epoch, number).permutation(self._pass_length)
            for number in range(passes)
        ]
        return np.concatenate(orders)[:length]


def order_of(config: Config, images: ImageSet) -> Order:
    """Return the global batches that a configuration asks for.

    Raises:
        UserError: If `mixing.class_probability` names a class that `images` does not have.
    """
    return Order(
        num_images=len(images),
        batch_size=config.optim.batch_size,
        repeats=config.data.epoch_repeats,
        seed=config.run.seed,
        probability=probability_of(config.mixing, images, config.run.epochs),
        adds=config.mixing.policy == "concat",
        composed_share=_composed_share(config.methods),
    )


def _composed_share(methods: Sequence[MethodSettings]) -> float:
    composed = sum(each.weight for each in methods if not find_method(each.name).generates)
    return composed / sum(each.weight for each in methods)


def probability_of(mixing: MixingConfig, images: ImageSet, epochs: int) -> Probability:
    """Return the probability of a synthetic sample that a configuration asks for.

    Raises:
        UserError: If `mixing.class_probability` names a class that `images` does not have.
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


LEDGER_FOLDER = "ledger"
"""Folder of the ledger in the run directory."""
ROW = np.dtype([("index", "<u4"), ("kind", "u1"), ("number", "<i4")])
"""Real image, `Kind`, and number of the request, which is -1 if no generated image was served."""
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
        with open_regular(path) as file:
            rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise UserError(f"{path} must be a part of a ledger: {one_line(error)}") from None
    if rows.dtype != ROW or rows.ndim != 1:
        raise UserError(f"{path} must be a part of a ledger, got an array of {rows.dtype}")
    return np.asarray(rows)


def _row(slot: Slot, kind: Kind) -> tuple[int, Kind, int]:
    return slot.index, kind, -1 if kind is Kind.STARVED else slot.number
