"""The generation process' loop: skip, claim, prepare, denoise, gate, put."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from cache import CacheFullError, Entry, Owner, Store, Writer, request_key
from online_aug.generation.autoencoding import TOGETHER
from online_aug.generation.gate import Gate, to_bytes
from online_aug.generation.image_generator import Finished, Prepare
from online_aug.generation.messages import Status
from online_aug.records import GenerationRequest

CLAIMED_TOGETHER = 16
"""Requests a transaction, begun before the next are claimed; others take theirs in between."""
IDLE_S = 0.05
WAIT_FOR_OTHERS_S = 0.5
LEASE_S = 300.0
WRITE_BATCH = 64
"""Images a commit, at most; twice as many may wait before generation does."""
State = Literal["loading", "generating", "paused", "waiting", "finished", "full"]


class Generates(Protocol):
    """An image generator: takes requests in, gives images back in any order."""

    @property
    def room(self) -> int:
        """How many more requests keep it busy."""
        ...

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in, and what prepares them."""
        ...

    def step(self) -> list[Finished]:
        """Go on a little; gives what is finished by then."""
        ...

    def drop(self) -> None:
        """Forget what is not finished."""
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
    prepare: Prepare
    """Starting images of some requests of one plan, at the generator's resolution."""
    refusal: Callable[[GenerationRequest], str | None]
    """Why a request cannot be prepared, None where it can."""
    gate: Gate
    """What finished images have to pass."""
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
        self._claimed_at = 0.0
        self._lost: list[GenerationRequest] = []
        self._under_way: set[GenerationRequest] = set()
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
        """Keep the generator busy until the plan is over; what is not finished then is dropped."""
        for batch in self._batches():
            self._submit(batch)
            if not self._keep_pace():
                break
        while self._under_way and not self._is_plan_over:
            self._step()
        self._generator.drop()

    def _take_up_newer_maps(self) -> bool:
        """Wait for the plan by the next version of the maps; False when there will be none."""
        if self._work.plan_of is None:
            return False
        self._flush()
        self._release()
        self._claimed.clear()
        self._under_way.clear()
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
        """Claimed requests in order, until nothing of the plan is left to anyone."""
        left = list(self._plan)
        while left and not self._is_plan_over:
            for start in range(0, len(left), CLAIMED_TOGETHER):
                self._claim(left[start : start + CLAIMED_TOGETHER])
                while self._claimed:
                    yield self._next_batch()
            while self._under_way and not self._is_plan_over:
                self._step()
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
        self._claimed_at = time.monotonic()
        self._reused += sum(state == "present" for state in status.values())
        self._lost += [request for request in free if request.key not in mine]
        self._lost += [request for request in requests if status[request] == "claimed"]

    def _release(self) -> None:
        keys = [request.key for request in (*self._claimed, *self._under_way)]
        keys += [request_key(entry.request) for entry in self._writer.unwritten()]
        self._store.release(keys, self._owner)
        self._claimed_at = float("-inf")

    def _next_batch(self) -> list[GenerationRequest]:
        """The oldest claimed requests, perhaps fewer than are prepared together, or none."""
        if time.monotonic() - self._claimed_at > LEASE_S / 2:
            self._claim_anew()
        count = min(TOGETHER, len(self._claimed))
        return [self._claimed.popleft() for _ in range(count)]

    def _claim_anew(self) -> None:
        """Claims may have run out, or been released in a pause, and be another's by now."""
        mine = set(self._store.claim([r.key for r in self._claimed], self._owner, LEASE_S))
        self._lost += [request for request in self._claimed if request.key not in mine]
        self._claimed = deque(request for request in self._claimed if request.key in mine)
        self._claimed_at = time.monotonic()

    def _submit(self, batch: list[GenerationRequest]) -> None:
        batch = [request for request in batch if not self._is_refused(request)]
        if batch:
            self._under_way.update(batch)
            self._generator.submit(batch, self._work.prepare)

    def _step(self) -> None:
        started = time.monotonic()
        finished = self._generator.step()
        if finished:
            self._keep([one.request for one in finished], torch.stack([f.image for f in finished]))
        self._busy_s += time.monotonic() - started
        if finished:
            self._tell("generating")

    def _keep(self, requests: list[GenerationRequest], images: Float[Tensor, "b 3 r r"]) -> None:
        verdicts = self._work.gate(requests, images)
        for request, image, verdict in zip(requests, images, verdicts, strict=True):
            if verdict.reason is None:
                pixels = to_bytes(image).permute(1, 2, 0).numpy()
                self._writer.put(Entry(request.to_fields(), pixels, verdict.scores))
                self._made += 1
            else:
                self._reject(request, verdict.reason)
            self._under_way.discard(request)

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
        """Go on until there is room and the trainer wants more; False at the end of the plan."""
        told_at = 0.0
        while not self._is_plan_over:
            if not self._is_far_ahead and self._generator.room >= TOGETHER:
                return True
            if self._under_way:
                self._step()
            elif self._made != self._writer.written:
                self._flush()  # the trainer may need just these to end the pause
            else:
                told_at = self._pause(told_at)
        return False

    @property
    def _is_far_ahead(self) -> bool:
        """Each plan counts for itself: what was made by older maps may never be served."""
        if self._work.max_ahead is None:
            return False
        made, served = self._start_of_plan
        ahead = (self._made - made) - (self._trainer.served - served)
        return ahead + len(self._under_way) >= self._work.max_ahead

    def _pause(self, told_at: float) -> float:
        """Idle a moment; returns when the trainer was last told of this pause, 0 at its start."""
        if not told_at:
            self._release()  # another process may need them sooner
        if time.monotonic() - told_at > 1.0:
            self._tell("paused")
            told_at = time.monotonic()
        time.sleep(IDLE_S)
        return told_at

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
