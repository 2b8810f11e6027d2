"""OnlineAugLoader: a DataLoader that owns the generation process and mixes what it makes.

The generation process as the loader sees it, and the wait for one of its images.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import DataLoader

from cache import CacheError, Store
from online_aug.errors import UserError
from online_aug.loader.dataset import MixedDataset, collate
from online_aug.loader.sampler import MixingSampler
from online_aug.loader.slots import Kind, LedgerWriter, Slot
from online_aug.request import Batch, Servable, Served

_POLL_S = 0.05


class GeneratorStatus(Protocol):
    """Where the generation process stands, counted over its restarts."""

    @property
    def state(self) -> str:
        """Such as `generating` or `paused`; `full` where it has ended as the cache is."""

    @property
    def note(self) -> str:
        """Why the cache takes no more, where it is full."""

    @property
    def generated(self) -> int:
        """Images put into the cache."""

    @property
    def rejected(self) -> int:
        """Images refused by the gate."""

    @property
    def images_per_s(self) -> float:
        """While generating."""


class GeneratorProcess(Protocol):
    """What the loader asks of those who watch over the generation processes."""

    @property
    def restarts(self) -> int:
        """How often it died and was started again."""

    @property
    def status(self) -> GeneratorStatus:
        """Where it stands."""

    def start(self) -> None:
        """Start the process."""

    def check(self) -> None:
        """Restart it if it died; raise if that does not help."""

    def served(self, fresh: int) -> None:
        """Tell how many fresh images were served."""

    def publish(self, version: str) -> None:
        """Tell that there is a newer version of the saliency maps."""

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class, None where it saw none yet."""

    def stop(self) -> None:
        """End the process."""


class StopWaiting(Exception):
    """The wait for an image was given up because the run is to stop."""


class WaitFor:
    """Blocks until the request of a number is made; False if it was rejected."""

    def __init__(
        self,
        store: Store,
        keys: list[bytes],
        generator: GeneratorProcess | None,
        timeout_s: float = 600.0,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._keys = store, keys
        self._generator, self._timeout_s = generator, timeout_s
        self._is_stopping = is_stopping

    def __call__(self, number: int) -> bool:
        """Wait for one request.

        Raises:
            UserError: If it does not come in time, or never will as the cache is full.
            StopWaiting: If the run is to stop meanwhile.
        """
        until = time.monotonic() + self._timeout_s
        while time.monotonic() < until:
            full = self._why_full()  # asked first: what it is told after is in the cache
            status = self._store.status([self._keys[number]])[0]
            if status in ("present", "rejected"):
                return status == "present"
            if full is not None:
                raise UserError(
                    f"mixing.starvation: wait needs image {number} of the plan, which is not made: "
                    f"{full}; the same command then goes on"
                )
            if self._generator:
                self._generator.check()
            if self._is_stopping():
                raise StopWaiting
            time.sleep(_POLL_S)
        raise UserError(
            f"mixing.starvation: wait has waited {self._timeout_s:.0f} s for image {number} of the "
            "plan; is anything generating into this cache?"
        )

    def _why_full(self) -> str | None:
        if self._generator is None or self._generator.status.state != "full":
            return None
        return self._generator.status.note


_NOTED_AT_ONCE = 1024
_SERVED = (Kind.FRESH, Kind.CACHED)
_log = logging.getLogger(__name__)


def check_same_cache(state: Mapping[str, Any], position: int) -> None:
    """Refuse a cache that holds less than what a run was served from.

    Args:
        state: As `OnlineAugLoader.state_dict` gave it.
        position: The last of the cache's log.

    Raises:
        UserError: If so.
    """
    if position < state["position"]:
        raise UserError(
            f"cache.path must be the cache that this run was served from, of which "
            f"{state['position']} images were known, got one of {position}: put it back, or "
            "set run.resume=false"
        )


class OnlineAugLoader(DataLoader[Batch]):
    """Batches of real, fresh and cached samples for one rank.

    The generation process starts with the first iteration and ends with `close` or the `with`.
    `state_dict` tells which batches the training loop has received, not which were prefetched.
    """

    def __init__(
        self,
        dataset: MixedDataset,
        sampler: MixingSampler,
        *,
        workers: int,
        pin_memory: bool,
        generator: GeneratorProcess | None,
        ledger: Path | None,
    ) -> None:
        """Serve `dataset` in the order of `sampler`.

        Args:
            dataset: Samples by slot.
            sampler: Decides the slots; the loader tells it where to begin.
            workers: Processes that read and decode; 0 does it in this one.
            pin_memory: Prepare batches for a quick copy to a GPU.
            generator: None where another rank owns the process, or nothing is generated.
            ledger: Folder that gets what each slot was filled with, a file an epoch and rank.
        """
        super().__init__(
            dataset,  # type: ignore[arg-type]  # collation makes batches of its samples
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )
        self._mixing, self.plan = sampler, dataset.plan
        self._process = generator
        self._is_started = False
        self._served_before = 0
        self._ledger = LedgerWriter(ledger, sampler.rank)
        self._times: Counter[int] = Counter()
        self._mixed, self._unnoted = dataset, list[bytes]()
        self._starts: list[int] = []
        self.totals = Served()
        self.step = 0
        """Batches of this epoch that the training loop has received."""

    def __enter__(self) -> "OnlineAugLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self._process and not self._is_started:
            self._process.start()
            self._is_started = True
            self._served_before = self.totals.fresh
        sampler = self._mixing
        self.step = sampler.first_step
        self._ledger.begin(sampler.epoch, sampler.first_step)
        try:
            for batch, kinds in super().__iter__():
                slots = sampler.planned.popleft()
                self._account(slots, kinds, batch.served)
                self._ledger.add(slots, kinds)
                self._count_served(slots, kinds)
                yield batch
        finally:  # also when the training loop ends in the middle of the epoch
            self.save_ledger()
            self._note_served()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves, from its first batch."""
        if epoch != self._mixing.epoch:
            self._mixing.epoch, self._mixing.first_step, self.step = epoch, 0, 0

    def extend(self, requests: Sequence[Servable], *, version: str, epoch: int, lag: int) -> None:
        """Go on with the plan by a newer version of the maps, from the start of an epoch.

        Args:
            requests: The newer plan; those before stay what they are, by number.
            version: Of its maps; the generation process is told.
            epoch: Called before it is iterated.
            lag: Plans before this one that are still served.
        """
        self._starts.append(len(self.plan))
        oldest = self._starts[max(0, len(self._starts) - 1 - lag)]
        self._mixing.extend(requests, oldest=oldest, epoch=epoch)
        self.plan.extend(requests)
        self._iterator = None  # workers that have the older plan end; new ones have this one
        if self._process:
            self._process.publish(version)

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is in the run: plain numbers only."""
        return {
            "epoch": self._mixing.epoch,
            "step": self.step,
            "position_at_start": self._mixing.supply.position_at_start,
            "position": self._mixed.store.position(),
            "times_sampled": dict(self._times),
            "totals": vars(self.totals).copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the last batch that the training loop had received.

        Raises:
            UserError: If the cache has been emptied or replaced since.
        """
        check_same_cache(state, self._mixed.store.position())
        self._mixing.epoch, self._mixing.first_step = state["epoch"], state["step"]
        self.step = state["step"]
        self._times = Counter(state["times_sampled"])
        self.totals = Served(**state["totals"])
        self._mixing.supply.start(state["position_at_start"], self._times)

    @property
    def process(self) -> GeneratorProcess | None:
        """The generation process this rank owns."""
        return self._process

    @property
    def samples_per_insert(self) -> float:
        """Times an image of the cache has been served in this run on average, by all its ranks."""
        supply = self._mixing.supply
        return (self.totals.fresh + self.totals.cached) * supply.sharers / max(1, supply.inserts)

    def reused(self) -> set[int]:
        """Requests of the plan this rank served whose image was in the cache before the run."""
        return set(self._times).difference(self._mixing.supply.made_in_run)

    def close(self) -> None:
        """End the workers and the generation process; may be called twice."""
        self._iterator = None
        if self._process and self._is_started:
            self._process.stop()
            self._is_started = False

    def save_ledger(self) -> None:
        """Write what has been served so far; a checkpoint is of use only with it."""
        self._ledger.save()

    def _account(self, slots: list[Slot], kinds: list[Kind], served: Served) -> None:
        if self._mixing.is_replay and kinds != [slot.kind for slot in slots]:
            raise UserError(
                "run.replay must find every image it serves in the cache, one cannot be read any "
                f"more at epoch {self._mixing.epoch + 1}, step {self.step + 1}"
            )
        if self._process:
            self._process.check()  # may raise: then this batch has not been received
        self.step += 1
        self._times.update(slot.number for slot in slots if slot.number >= 0)
        self.totals += served
        self._tell_process(served)

    def _tell_process(self, served: Served) -> None:
        """How far ahead it is; it works for all ranks of the node, and each is served its share."""
        process, limiter, supply = self._process, self._mixing.limiter, self._mixing.supply
        if process is None:
            return
        if limiter is not None:
            samples = supply.samples * supply.sharers
            process.served(limiter.paid(process.status.generated, supply.inserts, samples))
        elif served.fresh:
            process.served((self.totals.fresh - self._served_before) * supply.sharers)

    def _count_served(self, slots: list[Slot], kinds: list[Kind]) -> None:
        served = [slot.number for slot, kind in zip(slots, kinds, strict=True) if kind in _SERVED]
        self._unnoted += [self._mixed.plan[number].key for number in served]
        if len(self._unnoted) >= _NOTED_AT_ONCE:
            self._note_served()

    def _note_served(self) -> None:
        """Tell the cache, which may evict first what was served."""
        keys, self._unnoted = self._unnoted, []
        try:
            if keys:
                self._mixed.store.note_served(keys)
        except CacheError as error:
            _log.warning("what was served is not noted in the cache: %s", error)
