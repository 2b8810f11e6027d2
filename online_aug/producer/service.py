"""The generation process' loop: begin what has room, go on, put what is finished.

What the generation loop works on, with what, and for whom.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cache import CacheFullError, Entry, Owner, Store, Writer, request_key
from online_aug.errors import UserError
from online_aug.generation.engine import Finished
from online_aug.generation.gate import NOT_FINITE, to_bytes
from online_aug.generation.inputs import Prepare
from online_aug.generation.vae import TOGETHER
from online_aug.loader.back_pressure import AheadLimit
from online_aug.producer.process import State, Status
from online_aug.producer.request_queue import Order, Stripe, Weights, Worklist, weights_by_loss
from online_aug.request import GenerationRequest


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
    """Whom the images are for."""

    @property
    def served(self) -> int:
        """Fresh images served in this run so far."""
        ...

    @property
    def is_stopping(self) -> bool:
        """The work is to end, however much is left."""
        ...

    @property
    def saliency_version(self) -> str | None:
        """The newest maps by the classifier being trained; None before the first or without."""
        ...

    @property
    def class_losses(self) -> Sequence[float | None] | None:
        """The classifier's newest loss on each class; None before the first."""
        ...

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
    max_ahead: int | None
    """Images not yet served at which to pause; None never pauses."""
    stripe: Stripe | None = None
    """What this process begins with; the rest comes after it."""
    weights: Weights | None = None
    """Of classes or images at the start; None keeps the order of the plan."""
    follows_losses: bool = False
    """The weights then follow the classifier's losses."""


IDLE_S = 0.05
WAIT_FOR_OTHERS_S = 0.5
TELL_EVERY_S = 1.0
WRITE_BATCH = 64
"""Images a commit, at most; twice as many may wait before generation does."""
SPOILT_IN_A_ROW = 32
"""Images that are not finite, one after another, at which the model is said to make no others."""
_log = logging.getLogger(__name__)


class Service:
    """Works through a plan until all of it is in the cache, at the trainer's pace."""

    def __init__(self, work: Work, store: Store, generator: Generates, trainer: Trainer) -> None:
        self._work, self._store = work, store
        self._generator, self._trainer = generator, trainer
        self._owner = Owner.current()
        self._version: str | None = None
        self._weights = work.weights
        self._losses: Sequence[float | None] | None = None
        self._list = self._listed(work.plan)
        self._limit = AheadLimit(work.max_ahead)
        self._made = self._reused_before = 0
        self._rejected: Counter[str] = Counter()
        self._spoilt = 0
        self._busy_s = 0.0
        self._told: tuple[State, float] = ("loading", 0.0)
        self._writer = Writer(store, batch_size=WRITE_BATCH, max_queued=2 * WRITE_BATCH)

    def run(self) -> None:
        """Make what is missing; returns at the end of all plans, of the room, or when stopped.

        Raises:
            UserError: If the model makes images that are not finite and no others.
        """
        state: State = "finished"
        note = ""
        try:
            with self._writer:
                self._work_off()
                while self._take_up_newer_maps():
                    self._work_off()
        except CacheFullError as error:
            state, note = "full", str(error)
        finally:
            with suppress(CacheFullError):  # claims end with their process too
                self._release()
        self._tell(state, note)
        _log.info("%s: %d images made, rejected: %s", state, self._writer.written, self._reasons)

    def _work_off(self) -> None:
        """Make what the plan lacks; what is under way when it is given up is dropped."""
        while not self._is_plan_over and not self._list.is_done:
            self._begin()
            if self._list.under_way:
                self._step()
            elif not self._list.is_done:
                self._wait()
        self._generator.drop()

    def _take_up_newer_maps(self) -> bool:
        """Wait for the plan by the next version of the maps; False when there will be none."""
        if self._work.plan_of is None:
            return False
        self._flush()
        self._release()
        while not self._is_plan_over:
            self._idle("waiting", IDLE_S)
        if self._trainer.is_stopping or self._trainer.saliency_version is None:
            return False
        self._version = self._trainer.saliency_version
        self._reused_before += self._list.reused
        self._list = self._listed(self._work.plan_of(self._version))
        self._limit.start_plan(self._made, self._trainer.served)
        return True

    def _listed(self, plan: Sequence[GenerationRequest]) -> Worklist:
        order = Order(plan, self._work.stripe, self._weights)
        return Worklist(order, self._store, self._owner)

    def _follow_losses(self) -> None:
        losses = self._trainer.class_losses
        if self._work.follows_losses and losses is not None and losses != self._losses:
            self._losses, self._weights = losses, weights_by_loss(losses)
            self._list.reweigh(self._weights)

    @property
    def _is_plan_over(self) -> bool:
        return self._trainer.is_stopping or self._trainer.saliency_version != self._version

    def _begin(self) -> None:
        """Give the generator as much as it has room for and the trainer wants."""
        self._follow_losses()
        while self._generator.room >= TOGETHER and not self._is_far_ahead:
            taken = self._list.take(TOGETHER)
            if not taken:
                return
            batch = [request for request in taken if not self._is_refused(request)]
            if batch:
                self._generator.submit(batch, self._work.prepare)

    def _step(self) -> None:
        started = time.monotonic()
        finished = self._generator.step()
        for one in finished:
            self._keep(one)
        self._busy_s += time.monotonic() - started
        if finished:
            self._tell("generating")

    def _keep(self, finished: Finished) -> None:
        request, verdict = finished.request, finished.verdict
        self._check_finite(verdict.reason)
        if verdict.reason is None:
            pixels = to_bytes(finished.image).permute(1, 2, 0).numpy()
            self._writer.put(Entry(request.to_fields(), pixels, verdict.scores))
            self._made += 1
            self._list.end(request)
        else:
            self._reject(request, verdict.reason)

    def _check_finite(self, reason: str | None) -> None:
        self._spoilt = self._spoilt + 1 if reason == NOT_FINITE else 0
        if self._spoilt >= SPOILT_IN_A_ROW:
            raise UserError(
                "generation.dtype must be a number format in which the model makes images, got "
                f"{self._spoilt} in a row that are not finite: set generation.dtype=float32, or "
                "name another generation.model or finetune.path"
            )

    def _is_refused(self, request: GenerationRequest) -> bool:
        """Whether the method cannot prepare it, which is then recorded."""
        reason = self._work.refusal(request)
        if reason is not None:
            self._reject(request, reason)
        return reason is not None

    def _reject(self, request: GenerationRequest, reason: str) -> None:
        self._store.reject(request.key, request.to_fields(), reason)
        self._rejected[reason] += 1
        self._list.end(request)

    def _wait(self) -> None:
        """Nothing is under way: the trainer must serve some, or another process end its work."""
        if self._made != self._writer.written:
            self._flush()  # the trainer may need just these to end the pause
        elif self._is_far_ahead:
            self._list.give_back()
            self._idle("paused", IDLE_S)
        else:
            self._idle("waiting", WAIT_FOR_OTHERS_S)
            self._list.look_again()

    def _idle(self, state: State, seconds: float) -> None:
        last, told_at = self._told
        if last != state or time.monotonic() - told_at > TELL_EVERY_S:
            self._tell(state)
        time.sleep(seconds)

    @property
    def _is_far_ahead(self) -> bool:
        return self._limit.is_reached(
            self._made,
            self._trainer.served,
            under_way=self._list.under_way,
            slack=self._generator.room if self._told[0] == "paused" else 0,
        )

    def _flush(self) -> None:
        self._writer.flush()
        self._made = self._writer.written  # others may have stored some first

    def _release(self) -> None:
        self._list.release()
        unwritten = [request_key(entry.request) for entry in self._writer.unwritten()]
        self._store.release(unwritten, self._owner)

    @property
    def _reasons(self) -> str:
        return ", ".join(f"{n} {why}" for why, n in sorted(self._rejected.items())) or "none"

    def _tell(self, state: State, note: str = "") -> None:
        self._told = (state, time.monotonic())
        self._trainer.tell(
            Status(
                state=state,
                note=note,
                generated=self._writer.written,
                rejected=self._rejected.total(),
                rejected_by_reason=dict(self._rejected),
                reused=self._reused_before + self._list.reused,
                images_per_s=self._made / self._busy_s if self._busy_s else 0.0,
            )
        )
