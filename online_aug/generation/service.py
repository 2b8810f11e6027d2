"""The generation process' loop: skip, claim, prepare, denoise, gate, put."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Float, UInt8
from torch import Tensor

from cache import CacheFullError, Entry, Owner, Store, Writer, request_key
from online_aug.generation.gate import Gate, to_bytes
from online_aug.generation.image_generator import Group, group_of
from online_aug.generation.messages import Status
from online_aug.records import GenerationRequest

LOOK_AHEAD_BATCHES = 8
"""Requests claimed together, in batches: enough to fill a batch with one strength."""
IDLE_S = 0.05
WAIT_FOR_OTHERS_S = 0.5
LEASE_S = 300.0
WRITE_BATCH = 64
"""Images a commit, at most; twice as many may wait before generation does."""
State = Literal["loading", "generating", "paused", "waiting", "finished", "full"]


class Generates(Protocol):
    """An image generator: requests of one group and their starting images to finished images."""

    def generate(
        self, requests: Sequence[GenerationRequest], images: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 r r"]:
        """Images in [0, 1]."""
        ...


class Trainer(Protocol):
    """The other side of the pipe."""

    served: int
    """Fresh images served in this run so far."""
    is_stopping: bool
    saliency_version: str | None
    """The newest maps by the classifier being trained; None before the first, or without such."""

    def tell(self, status: Status) -> None:
        """Send where the work stands."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be made, and from what."""

    plan: Sequence[GenerationRequest]
    """What is known at the start."""
    plan_of: Callable[[str], Sequence[GenerationRequest]] | None
    """The plan by a version of the saliency maps; None where none but the first will come."""
    prepare: Callable[[Sequence[GenerationRequest]], UInt8[Tensor, "b 3 r r"]]
    """Starting images of some requests, at the generator's resolution."""
    refusal: Callable[[GenerationRequest], str | None]
    """Why a request cannot be prepared, None where it can."""
    gate: Gate
    """What finished images have to pass."""
    slots: int
    max_ahead: int | None
    """Images not yet served at which to pause; None never pauses."""


class Service:
    """Works through a plan until all of it is in the cache, at the trainer's pace."""

    def __init__(self, work: Work, store: Store, generator: Generates, trainer: Trainer) -> None:
        self._work, self._plan = work, work.plan
        self._version: str | None = None
        self._start_of_plan = (0, 0)
        self._store = store
        self._generator = generator
        self._trainer = trainer
        self._owner = Owner.current()
        self._claimed: deque[GenerationRequest] = deque()
        self._lost: list[GenerationRequest] = []
        self._made = self._rejected = self._reused = 0
        self._busy_s = 0.0
        self._writer = Writer(store, batch_size=WRITE_BATCH, max_queued=2 * WRITE_BATCH)

    def run(self) -> None:
        """Make what is missing; returns at the end of all plans, of the room, or when stopped."""
        state: State = "finished"
        try:
            with self._writer:
                self._work_off()
                while self._take_up_newer_maps():
                    self._work_off()
        except CacheFullError:
            state = "full"
        finally:
            self._release()
        self._tell(state)

    def _work_off(self) -> None:
        for batch in self._batches():
            if batch:
                self._make(batch)
            if not self._keep_pace():
                break

    def _take_up_newer_maps(self) -> bool:
        """Wait for the plan by the next version of the maps; False when there will be none."""
        if self._work.plan_of is None:
            return False
        self._flush()
        self._release()
        self._claimed.clear()
        self._lost.clear()
        told_at = float("-inf")
        while not self._is_plan_over:
            if time.monotonic() - told_at > 1.0:
                self._tell("waiting")
                told_at = time.monotonic()
            time.sleep(IDLE_S)
        if self._trainer.is_stopping or self._trainer.saliency_version is None:
            return False
        self._version = self._trainer.saliency_version
        self._plan = self._work.plan_of(self._version)
        self._start_of_plan = (self._made, self._trainer.served)
        return True

    @property
    def _is_plan_over(self) -> bool:
        return self._trainer.is_stopping or self._trainer.saliency_version != self._version

    def _batches(self) -> Iterator[list[GenerationRequest]]:
        """Groups of claimed requests, some empty, until nothing of the plan is left to anyone."""
        left = list(self._plan)
        chunk_size = self._work.slots * LOOK_AHEAD_BATCHES
        while left and not self._is_plan_over:
            for start in range(0, len(left), chunk_size):
                self._claim(left[start : start + chunk_size])
                while len(self._claimed) >= chunk_size:
                    yield self._next_group()
            while self._claimed:
                yield self._next_group()
            left, self._lost = self._lost, []
            if left:
                self._tell("waiting")
                time.sleep(WAIT_FOR_OTHERS_S)

    def _claim(self, requests: list[GenerationRequest]) -> None:
        """Claim what is free; what another process has claimed is looked at again later."""
        status = dict(zip(requests, self._store.status([r.key for r in requests]), strict=True))
        free = [request for request in requests if status[request] == "free"]
        mine = set(self._store.claim([r.key for r in free], self._owner, LEASE_S))
        self._claimed.extend(request for request in free if request.key in mine)
        self._reused += sum(state == "present" for state in status.values())
        self._lost += [request for request in free if request.key not in mine]
        self._lost += [request for request in requests if status[request] == "claimed"]

    def _release(self) -> None:
        keys = [request.key for request in self._claimed]
        keys += [request_key(entry.request) for entry in self._writer.unwritten()]
        self._store.release(keys, self._owner)

    def _next_group(self) -> list[GenerationRequest]:
        """The oldest claimed request and others of its kind, at most as many as there are slots.

        The claims are made anew: they may have run out, or been released in a pause, since.
        """
        wanted: Group = group_of(self._claimed[0])
        batch = [request for request in self._claimed if group_of(request) == wanted]
        batch = batch[: self._work.slots]
        taken = set(batch)
        self._claimed = deque(request for request in self._claimed if request not in taken)
        mine = set(self._store.claim([r.key for r in batch], self._owner, LEASE_S))
        self._lost += [request for request in batch if request.key not in mine]
        return [request for request in batch if request.key in mine]

    def _make(self, batch: list[GenerationRequest]) -> None:
        batch = [request for request in batch if not self._is_refused(request)]
        if not batch:
            return
        started = time.monotonic()
        images = self._generator.generate(batch, self._work.prepare(batch))
        verdicts = self._work.gate(batch, images)
        for request, image, verdict in zip(batch, images, verdicts, strict=True):
            if verdict.reason is not None:
                self._reject(request, verdict.reason)
                continue
            pixels = to_bytes(image).permute(1, 2, 0).numpy()
            entry = Entry(request=request.to_fields(), image=pixels, scores=verdict.scores)
            self._writer.put(entry)
            self._made += 1
        self._busy_s += time.monotonic() - started
        self._tell("generating")

    def _is_refused(self, request: GenerationRequest) -> bool:
        """Whether the method cannot prepare it, which is then recorded."""
        reason = self._work.refusal(request)
        if reason is not None:
            self._reject(request, reason)
        return reason is not None

    def _reject(self, request: GenerationRequest, reason: str) -> None:
        self._store.reject(request.key, request.to_fields(), reason)
        self._rejected += 1

    def _keep_pace(self) -> bool:
        """Wait while too far ahead of what was served; False when told to stop or to plan anew.

        Each plan counts for itself: what was made by older maps may never be served.
        """
        limit, told_at = self._work.max_ahead, 0.0
        made, served = self._start_of_plan
        while not self._is_plan_over:
            if limit is None or (self._made - made) - (self._trainer.served - served) < limit:
                return True
            if self._made != self._writer.written:
                self._flush()  # the trainer may need just these to end the pause
                continue
            if not told_at:
                self._release()  # another process may need them sooner
            if time.monotonic() - told_at > 1.0:
                self._tell("paused")
                told_at = time.monotonic()
            time.sleep(IDLE_S)
        return False

    def _flush(self) -> None:
        self._writer.flush()
        self._made = self._writer.written  # others may have stored some first

    def _tell(self, state: State) -> None:
        self._trainer.tell(
            Status(
                state=state,
                generated=self._writer.written,
                rejected=self._rejected,
                reused=self._reused,
                images_per_s=self._made / self._busy_s if self._busy_s else 0.0,
            )
        )
