"""OnlineAugLoader: a DataLoader that mixes real images with those that a second process makes.

Its parts are a batch sampler (what fills a slot), a data set (reads and composes it), back-pressure
on the generation process, the ledger and notes to the cache.
"""

import weakref
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from online_aug.errors import UserError
from online_aug.loader.back_pressure import BackPressure, GeneratorProcess
from online_aug.loader.batch import Batch, Collated, collate, count_kinds
from online_aug.loader.dataset import MixedDataset
from online_aug.loader.head_start import HeadStart
from online_aug.loader.iteration import (
    Ending,
    Feedback,
    Iteration,
    Pace,
    Received,
    Stats,
    check_same_cache,
)
from online_aug.loader.pool import ServedNotes
from online_aug.loader.sampler import BatchSampler
from online_aug.loader.slots import Kind, LedgerWriter, Slot
from online_aug.loader.workers import PREFETCHED, WorkerReasons, with_reasons
from online_aug.planning import Numbered
from online_aug.request import Counts, Servable
from online_aug.seeding import torch_rng

_SYNTHETIC = (Kind.FRESH, Kind.CACHED)


class OnlineAugLoader(DataLoader[Batch]):
    """Batches of real, fresh and cached samples for one rank; an iteration is one epoch.

    The generation process starts with the first iteration, or with `start`, and ends with `close`,
    with the `with` block, or when nobody holds the loader any more.
    """

    # Accelerate would serve dataset and batch_sampler by a loader of its own, without generation.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

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
            generator=torch_rng(0),  # or PyTorch's global one is drawn from in every epoch
        )
        self.plan = sampler.pool.requests
        self._batches, self._pool, self._pressure = sampler, sampler.pool, pressure
        self._store, self._ledger = dataset.store, LedgerWriter(ledger, sampler.rank)
        self.head_start: HeadStart | None = None
        """The wait before the first batch, if there is one."""
        self.mode: Literal["batches", "index"] = "batches"
        """`index` yields lists of slots for `dataset.read`, which count as served at once."""
        self.gives_sparse_labels = False
        """Whether labels are a sparse tensor, which is to be made dense on the device."""
        self.feedback: Feedback | None = None
        """Takes what the loop tells by `report_losses` and `publish`; None does nothing."""
        self.scratch: Path | None = None
        """Folder that is removed at the end, unless the `with` block ends by an exception."""
        self._notes, self._pace, self._received = ServedNotes(dataset.store), Pace(), Received()
        self._batch_bytes, self._plan_starts = 0, list[int]()
        self._iteration: weakref.ref[Iteration] | None = None
        self._is_begun = self._moves_on = self._is_closed = False
        self._ending: Ending | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._ending is not None:
            self._ending.scratch = None  # it has the log of the generation process
        self.close()

    def start(self) -> None:
        """Start the generation process if it does not run yet; call from the main thread.

        Raises:
            UserError: If the loader is closed.
        """
        self._check_open()
        if self._ending is not None:
            return
        self._ending = Ending(self.process, self.scratch)
        self._finish = weakref.finalize(self, self._ending)
        if self.process:
            self.process.start()
            self._pressure.start(self._received.counts.fresh)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Serve the epoch of `set_epoch`, or else the one after the last that was begun."""
        self._check_open()
        iteration = Iteration(self._served(), self._is_newest)
        self._iteration = weakref.ref(iteration)
        return iteration

    def _check_open(self) -> None:
        if self._is_closed:
            raise UserError("a loader must not be used after close: open another one")

    def _is_newest(self, iteration: Iteration) -> bool:
        self._check_open()
        return self._iteration is not None and self._iteration() is iteration

    def _served(self) -> Generator[Any]:
        self.start()
        if self.head_start:
            self.head_start(len(self.plan))
        sampler = self._batches
        if self._moves_on:
            sampler.epoch, sampler.first_step = sampler.epoch + 1, 0
        self._is_begun = self._moves_on = True
        self._received.step = sampler.first_step
        self._ledger.begin(sampler.epoch, sampler.first_step)
        self._pace = Pace()
        try:
            yield from self._slots() if self.mode == "index" else self._whole_batches()
        finally:  # also if the training loop ends in the middle of the epoch
            self._ledger.save()
            self._notes.flush()

    def _slots(self) -> Iterator[list[Slot]]:
        for slots in self._batches:
            self._receive(self._batches.planned.popleft(), [slot.kind for slot in slots])
            yield slots

    def _whole_batches(self) -> Iterator[Batch]:
        for images, labels, kinds, refusals in self._fetched():
            self._batch_bytes = images.nbytes + labels.nbytes
            slots = self._batches.planned.popleft()
            served, few = self._receive(slots, kinds, refusals), labels.tensor()
            indices = torch.tensor([slot.index for slot in slots])
            if self.feedback is not None:
                self._received.remember(indices, few)
            given = few if self.gives_sparse_labels else few.to_dense()
            yield Batch.of(images, given, served=served, indices=indices)

    def _fetched(self) -> Iterator[Collated]:
        begin = super().__iter__
        return with_reasons(begin, lambda: self._iterator, self._reasons, lambda: self._batch_bytes)

    def _receive(
        self, slots: list[Slot], kinds: list[Kind], refusals: Sequence[str] = ()
    ) -> Counts:
        if self._batches.filler.is_exact and kinds != [slot.kind for slot in slots]:
            raise UserError(
                "run.replay must find every image it serves in the cache, one cannot be read any "
                f"more at epoch {self._batches.epoch + 1}, step {self.step + 1}"
            )
        if self.process:
            self.process.check()  # may raise: then this batch has not been received
        served = count_kinds(kinds)
        self._received.add(slots, served, refusals)
        self._pace.add(len(slots))
        self._pressure.report(self._received.counts.fresh)
        self._ledger.add(slots, kinds)
        filled = zip(slots, kinds, strict=True)
        self._notes.add([self.plan[slot.number].key for slot, kind in filled if kind in _SYNTHETIC])
        return served

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves.

        It begins with its first batch, or where `load_state_dict` found the run in that epoch.
        """
        if self._is_begun or epoch != self._batches.epoch:
            self._batches.epoch, self._batches.first_step, self._received.step = epoch, 0, 0
        self._is_begun = self._moves_on = False

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iteration serves, unless another one is set."""
        return self._batches.epoch + self._moves_on

    def report_losses(
        self, indices: Iterable[int] | Tensor, losses: Iterable[float] | Tensor
    ) -> None:
        """Tell how hard samples were: `schedule.priority: hard`, and no other, makes more of them.

        Args:
            indices: `batch.indices`, or those of some samples of the latest batches.
            losses: Loss of each of them; a sample counts for the classes of its soft label.

        Raises:
            UserError: If there are not as many losses as indices, or one is not known.
        """
        if self.feedback is not None:
            self.feedback.report(*self._received.losses(indices, losses))

    def publish(self, classifier: nn.Module) -> None:
        """Plan the epochs to come by what the classifier looks at now.

        Call it between two epochs, on all ranks. It looks at every training image, unless
        `saliency.teacher` is not `classifier`. The classifier is not changed.

        Raises:
            UserError: If an epoch is under way, or a training image cannot be read.
        """
        self._check_open()
        if (current := self._iteration and self._iteration()) and not current.is_over:
            raise UserError("publish must be called between two epochs, got one within")
        if self.feedback is not None:
            self.feedback.publish(self.next_epoch, classifier)

    def extend(self, requests: Numbered[Servable], *, version: str, epoch: int, lag: int) -> None:
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
            **({} if self.feedback is None else {"feedback": self.feedback.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch that the training loop had received.

        Raises:
            UserError: If the cache has been emptied or replaced since.
        """
        check_same_cache(state, self._store.position())
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"], state["epoch"])
        self._batches.epoch, self._batches.first_step = state["epoch"], state["step"]
        self._is_begun, self._moves_on = False, len(self._batches) == 0
        self._received = Received.resumed(state)
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

    def stats(self) -> Stats:
        """Return the figures of the run so far, as far as this rank knows them."""
        made_per_s = self.process.status.images_per_s if self.process else 0.0
        return Stats.of(self.counts, self._pace.images_per_s, made_per_s)

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
        self._is_closed = True
        self._iterator = None
        if self._ending is not None:
            self._finish()
