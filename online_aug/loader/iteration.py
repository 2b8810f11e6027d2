"""A training loop's side of a loader: what it has received, one pass, what it tells, the end."""

import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from online_aug.errors import UserError
from online_aug.loader.back_pressure import GeneratorProcess
from online_aug.loader.slots import Slot
from online_aug.request import Counts

REMEMBERED_BATCHES = 16
"""Batches whose labels are kept, so that losses can be reported a little later."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Figures of a run so far, on this rank, by their names in `metrics.jsonl`."""

    served_real: int
    served_fresh: int
    served_cached: int
    served_composed: int
    starved: int
    """Slots that got the real image because no other was ready."""
    generated: int
    """Images put into the cache."""
    rejected: int
    """Images that the gate refused."""
    images_per_s: float
    """Images served a second, with all that the loop did meanwhile, since its epoch began."""
    generated_per_s: float
    """Images made a second while generating."""

    @classmethod
    def of(cls, counts: Counts, images_per_s: float, generated_per_s: float) -> Self:
        """Return the figures of these counts."""
        return cls(
            rejected=counts.rejected,
            images_per_s=images_per_s,
            generated_per_s=generated_per_s,
            **counts.by_metric,
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
    labels: deque[tuple[Tensor, Tensor]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED_BATCHES)
    )
    """Indices and sparse soft labels of the latest batches."""

    @classmethod
    def resumed(cls, state: dict[str, Any]) -> Self:
        """Return what a state of the loader says."""
        return cls(
            step=state["step"],
            times=Counter(state["times_sampled"]),
            counts=Counts(**state["counts"]),
            refusals=Counter(state["refusals"]),
        )

    def add(self, slots: Sequence[Slot], served: Counts, refusals: Sequence[str]) -> None:
        """Count a batch."""
        self.step += 1
        self.refusals.update(refusals)
        self.times.update(slot.number for slot in slots if slot.number >= 0)
        self.counts += served

    def remember(self, indices: Int[Tensor, " b"], labels: Float[Tensor, "b k"]) -> None:
        """Keep the sparse soft labels of a batch."""
        self.labels.append((indices, labels))

    def losses(
        self, indices: Iterable[int] | Tensor, losses: Iterable[float] | Tensor
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b k"]]:
        """Return losses with the soft labels that their samples were served with last.

        Args:
            indices: The samples, by their indices in one of the latest batches.
            losses: Loss of each of them.

        Raises:
            UserError: If there are not as many losses as indices, or one is not known.
        """
        chosen, values = torch.as_tensor(indices).reshape(-1), torch.as_tensor(losses).detach()
        if values.shape != chosen.shape:
            raise UserError(
                f"losses must be one number for each of {len(chosen)} indices, got shape "
                f"{tuple(values.shape)}: ask the loss function for reduction='none'"
            )
        for kept, labels in reversed(self.labels):
            if torch.equal(kept, chosen):  # as nearly always
                return values.float(), labels.to_dense()
        rows: dict[int, Tensor] = {}
        for kept, labels in self.labels:
            wanted = torch.isin(kept, chosen).nonzero().ravel()
            some = labels.index_select(0, wanted).to_dense()
            rows.update(zip(kept[wanted].tolist(), some, strict=True))
        if unknown := [index for index in chosen.tolist() if index not in rows]:
            raise UserError(
                f"indices must be batch.indices of one of the last {REMEMBERED_BATCHES} batches, "
                f"got {unknown[0]}"
            )
        return values.float(), torch.stack([rows[index] for index in chosen.tolist()])


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


class Pace:
    """How fast the training loop takes images, since it began its epoch."""

    def __init__(self) -> None:
        """Count from the first batch that is asked for."""
        self._began = self._last = time.monotonic()
        self._images = 0

    def add(self, images: int) -> None:
        """Count a batch that is handed over now."""
        self._images += images
        self._last = time.monotonic()

    @property
    def images_per_s(self) -> float:
        """Images a second from the beginning to the last batch; 0 before the first."""
        spent = self._last - self._began
        return self._images / spent if spent else 0.0


_ONE_LOOP = (
    "a loader must serve one loop and one thread at a time, another one asks too: open a loader "
    "for each"
)


class Iteration(Iterator[Any]):
    """One pass of a training loop; a newer pass ends it, and so does another thread."""

    def __init__(self, batches: Generator[Any], is_newest: Callable[["Iteration"], bool]) -> None:
        """Hand out `batches` as long as `is_newest` says so."""
        self._batches, self._is_newest = batches, is_newest
        self._is_busy = threading.Lock()
        self.is_over = False
        """Whether nothing more comes."""

    def __next__(self) -> Any:
        if not self._is_busy.acquire(blocking=False):
            raise UserError(_ONE_LOOP)
        try:
            if not self._is_newest(self):
                raise UserError(_ONE_LOOP)
            return next(self._batches)
        except BaseException:
            self.is_over = True
            raise
        finally:
            self._is_busy.release()

    def close(self) -> None:
        """End the pass early, as leaving the loop does."""
        self.is_over = True
        self._batches.close()


class Feedback(Protocol):
    """The things that a training loop tells the generation process about its classifier."""

    def report(self, losses: Float[Tensor, " b"], labels: Float[Tensor, "b k"]) -> None:
        """Take the losses of samples with these soft labels."""

    def publish(self, epoch: int, classifier: nn.Module) -> None:
        """Plan an epoch that has not begun by what the classifier looks at now."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has been published, as plain values."""

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Plan with what had been published up to the start of an epoch."""


@dataclass
class Ending:
    """The end of a loader, called once: when it is closed or forgotten, or Python ends."""

    process: GeneratorProcess | None
    scratch: Path | None
    """Folder for temporary files; None if there is none, or it is to stay."""
    owner: int = field(default_factory=os.getpid)

    def __call__(self) -> None:
        """End the generation process and remove the folder; a fork of this process does nothing."""
        if os.getpid() != self.owner:
            return
        if self.process is not None:
            self.process.stop()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
