"""OnlineAugLoader: a DataLoader that mixes real images with those that a second process makes.

It is put together from a batch sampler (what fills a slot), a data set (reads and composes it), the
back-pressure on the generation process, the ledger, and notes to the cache.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch.utils.data import DataLoader

from online_aug.errors import UserError
from online_aug.loader.back_pressure import BackPressure, GeneratorProcess
from online_aug.loader.dataset import Batch, Collated, MixedDataset, collate
from online_aug.loader.head_start import HeadStart
from online_aug.loader.pool import ServedNotes
from online_aug.loader.sampler import BatchSampler
from online_aug.loader.slots import Kind, LedgerWriter, Slot
from online_aug.loader.workers import (
    PREFETCHED,
    WorkerReasons,
    exit_codes,
    no_sudden_errors,
    worker_error,
)
from online_aug.request import Counts, Servable

_SYNTHETIC = (Kind.FRESH, Kind.CACHED)


def check_same_cache(state: Mapping[str, Any], position: int) -> None:
    """Refuse a cache that holds less than the one that a run was served from.

    Args:
        state: Result of `OnlineAugLoader.state_dict` in that run.
        position: Last position of the cache's log.

    Raises:
        UserError: If so.
    """
    if position < state["position"]:
        raise UserError(
            f"cache.path must be the cache that this run was served from, of which "
            f"{state['position']} images were known, got one of {position}: put it back, or "
            "set run.resume=false"
        )


@dataclass(kw_only=True)
class Received:
    """Batches that the training loop has received; prefetched ones do not count."""

    step: int = 0
    """Batches of this epoch."""
    times: Counter[int] = field(default_factory=Counter)
    """How often each request was served in this run, by number."""
    counts: Counts = Counts()
    """How the slots of this run were filled, and what earlier launches generated."""
    refusals: Counter[str] = field(default_factory=Counter)
    """How often nothing was composed for a slot of this run, by reason."""

    def add(self, slots: Sequence[Slot], served: Counts, refusals: Sequence[str]) -> None:
        """Count a batch."""
        self.step += 1
        self.refusals.update(refusals)
        self.times.update(slot.number for slot in slots if slot.number >= 0)
        self.counts += served


class OnlineAugLoader(DataLoader[Batch]):
    """Batches of real, fresh and cached samples for one rank.

    The generation process starts with the first iteration, or with `start`, and ends with `close`
    or the `with` block.
    """

    def __init__(
        self,
        dataset: MixedDataset,
        sampler: BatchSampler,
        *,
        pressure: BackPressure,
        workers: int,
        pin_memory: bool,
        ledger: Path | None,
    ) -> None:
        """Serve `dataset` in the order of `sampler`.

        Args:
            dataset: Gives the sample of a slot.
            sampler: Decides the slots; the loader tells it where to begin.
            pressure: Reports to the generation process, if this rank owns one.
            workers: Processes that read and decode; 0 does it in this one.
            pin_memory: Whether batches are prepared for a quick copy to a GPU.
            ledger: Folder that gets a file for each epoch and rank, which says how every slot was
                filled; None writes none.
        """
        self._reasons = WorkerReasons()
        super().__init__(
            dataset,  # type: ignore[arg-type]  # collation makes batches of its samples
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCHED if workers else None,
            worker_init_fn=self._reasons.begin,
        )
        self.plan = dataset.plan
        self._batches, self._pool, self._pressure = sampler, sampler.pool, pressure
        self._store = dataset.store
        self._ledger = LedgerWriter(ledger, sampler.rank)
        self.head_start: HeadStart | None = None
        """The wait before the first batch, if there is one."""
        self._notes = ServedNotes(dataset.store)
        self._received = Received()
        self._plan_starts: list[int] = []
        self._is_started = False
        self._batch_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the generation process if it does not run yet; call from the main thread."""
        if self.process and not self._is_started:
            self.process.start()
            self._is_started = True
            self._pressure.start(self._received.counts.fresh)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.start()
        if self.head_start:
            self.head_start(len(self.plan))
        sampler = self._batches
        self._received.step = sampler.first_step
        self._ledger.begin(sampler.epoch, sampler.first_step)
        try:
            for collated in self._fetched():
                self._receive(sampler.planned.popleft(), *collated)
                yield collated[0]
        finally:  # also if the training loop ends in the middle of the epoch
            self._ledger.save()
            self._notes.flush()

    def _fetched(self) -> Iterator[Collated]:
        with no_sudden_errors():
            batches = super().__iter__()
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError):  # whatever it was doing when a worker ended
                ended = exit_codes(getattr(batches, "_workers", ()))
                if all(code is None for code in ended):
                    raise
                raise worker_error(ended, self._reasons.read(), self._batch_bytes) from None

    def _receive(
        self, slots: list[Slot], batch: Batch, kinds: list[Kind], refusals: list[str]
    ) -> None:
        self._batch_bytes = batch.images.nbytes + batch.labels.nbytes
        if self._batches.filler.is_exact and kinds != [slot.kind for slot in slots]:
            raise UserError(
                "run.replay must find every image it serves in the cache, one cannot be read any "
                f"more at epoch {self._batches.epoch + 1}, step {self.step + 1}"
            )
        if self.process:
            self.process.check()  # may raise: then this batch has not been received
        self._received.add(slots, batch.served, refusals)
        self._pressure.report(self._received.counts.fresh)
        self._ledger.add(slots, kinds)
        filled = zip(slots, kinds, strict=True)
        self._notes.add([self.plan[slot.number].key for slot, kind in filled if kind in _SYNTHETIC])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves, from its first batch."""
        if epoch != self._batches.epoch:
            self._batches.epoch, self._batches.first_step, self._received.step = epoch, 0, 0

    def extend(self, requests: Sequence[Servable], *, version: str, epoch: int, lag: int) -> None:
        """Add a newer plan from the start of an epoch; call it before that epoch is iterated.

        Args:
            requests: The newer plan; earlier requests keep their numbers.
            version: Version of its saliency maps; the generation process is told.
            epoch: First epoch that is served from it.
            lag: How many plans before this one are still served.
        """
        self._plan_starts.append(len(self.plan))
        oldest = self._plan_starts[max(0, len(self._plan_starts) - 1 - lag)]
        self._batches.filler.extend(requests, oldest=oldest, epoch=epoch)
        self.plan.extend(requests)
        self._iterator = None  # its workers have the older plan; new ones will have this one
        if self.process:
            self.process.publish(version)

    def state_dict(self) -> dict[str, Any]:
        """Return where the training loop is in the run, as plain numbers."""
        return {
            "epoch": self._batches.epoch,
            "step": self.step,
            "position_at_start": self._pool.position_at_start,
            "position": self._store.position(),
            "times_sampled": dict(self._received.times),
            "counts": vars(self.counts).copy(),
            "refusals": dict(self._received.refusals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch that the training loop had received.

        Raises:
            UserError: If the cache has been emptied or replaced since.
        """
        check_same_cache(state, self._store.position())
        self._batches.epoch, self._batches.first_step = state["epoch"], state["step"]
        self._received = Received(
            step=state["step"],
            times=Counter(state["times_sampled"]),
            counts=Counts(**state["counts"]),
            refusals=Counter(state["refusals"]),
        )
        self._pool.start(state["position_at_start"], self._received.times)

    @property
    def process(self) -> GeneratorProcess | None:
        """The generation process; None if another rank owns it or nothing is generated."""
        return self._pressure.generator

    @property
    def step(self) -> int:
        """Batches of this epoch that the training loop has received."""
        return self._received.step

    @property
    def counts(self) -> Counts:
        """Samples that this rank received and its generation processes made since the run began."""
        counts, process = self._received.counts, self.process
        if process is None:
            return counts
        status = process.status
        return counts + Counts(
            generated=status.generated, rejected=status.rejected, restarts=process.restarts
        )

    @property
    def refusals(self) -> Mapping[str, int]:
        """How often nothing was composed for a slot of this rank, by reason, in this run."""
        return self._received.refusals

    @property
    def times_served(self) -> Counter[int]:
        """How often this rank received each request in this run, by number."""
        return self._received.times

    @property
    def inserts(self) -> int:
        """Images of the plan that there have been to serve in this run."""
        return self._pool.inserts

    @property
    def samples_per_insert(self) -> float:
        """How often an image of the cache was served in this run on average, by all its ranks."""
        served = self._received.counts.fresh + self._received.counts.cached
        return served * self._pool.sharers / max(1, self._pool.inserts)

    def reused(self) -> set[int]:
        """Return the requests served by this rank whose image was in the cache before the run."""
        return set(self._received.times).difference(self._pool.made_in_run)

    def served(self) -> list[Servable]:
        """Return the requests whose images this rank was served in this run, each once."""
        return [self.plan[number] for number in sorted(self._received.times)]

    def save_ledger(self) -> None:
        """Write what has been served so far; a checkpoint can be replayed only with it."""
        self._ledger.save()

    def close(self) -> None:
        """End the workers and the generation process; may be called twice."""
        self._iterator = None
        if self.process and self._is_started:
            self.process.stop()
            self._is_started = False
