"""The generation process's loop: begin requests, step the engine, store finished images.

The `Service` joins a request queue, an image engine, the output into the cache, and the trainer,
who is told the status. Back-pressure decides how far it may run ahead of the trainer.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from cache import CacheFullError, Entry, Owner, Rejection, Store, Writer, request_key
from cache.contact_sheet import small_picture
from online_aug.data.transforms import to_bytes
from online_aug.errors import UserError
from online_aug.generation.gate import NOT_FINITE, Finished
from online_aug.generation.vae import VAE_BATCH_SIZE
from online_aug.loader.back_pressure import AheadLimit
from online_aug.producer.messages import State, Status, Trainer
from online_aug.producer.request_queue import RequestQueue
from online_aug.producer.work import ImageEngine, Work
from online_aug.request import GenerationRequest

POLL_S = 0.05
"""Time between two looks at what the trainer has said, while there is nothing to do."""
WAIT_FOR_OTHERS_S = 0.5
"""Time between two looks at requests that other processes have claimed."""
TELL_EVERY_S = 1.0
"""Time between two messages of the same state, while there is nothing to do."""
WRITE_BATCH = 64
"""Most images in a commit; twice as many may wait before generation does."""
PICTURE_PX = 96
"""Longest side of the pictures of rejected images."""
MOST_NOT_FINITE = 32
"""Images in a row with NaN or infinity after which the model is said to make no others."""
_log = logging.getLogger(__name__)


class Service:
    """Makes the images of a plan until all are in the cache, at the trainer's pace."""

    def __init__(self, work: Work, store: Store, engine: ImageEngine, trainer: Trainer) -> None:
        """Take the work, the cache, the engine and the trainer."""
        owner = Owner.current()
        self._work, self._engine, self._trainer = work, engine, trainer
        self._queue = RequestQueue(work.plan, store, owner, work.stripe, work.weights, work.there)
        self._output = Output(store, owner, work)
        self._reporter = StatusReporter(trainer, self._output, self._queue)
        self._version: str | None = None
        self._limit = AheadLimit(work.max_ahead)

    def run(self) -> None:
        """Make what is missing until all plans end, the cache is full or the trainer says stop.

        Raises:
            UserError: If the model makes only images that are not finite.
        """
        state: State = "finished"
        note = ""
        try:
            with self._output:
                self._work_off_plan()
                while self._wait_for_newer_plan():
                    self._work_off_plan()
        except CacheFullError as error:
            state, note = "full", str(error)
        except Exception:
            self._reporter.tell(self._reporter.state)  # with what was stored at the end
            raise
        finally:
            with suppress(CacheFullError):  # claims end with their process too
                self._release_claims()
        self._reporter.tell(state, note)
        _log.info("%s: %s", state, self._output)

    def _work_off_plan(self) -> None:
        while not self._is_plan_over and not self._queue.is_done:
            self._begin_requests()
            if self._queue.under_way:
                self._step_engine()
            elif not self._queue.is_done:
                self._wait()
        self._engine.drop()  # what is under way when a plan is given up

    @property
    def _is_plan_over(self) -> bool:
        return self._trainer.is_stopping or self._trainer.saliency_version != self._version

    def _begin_requests(self) -> None:
        losses = self._trainer.class_losses
        if self._work.follows_losses and losses is not None:
            self._queue.follow_losses(losses)
        while self._engine.room >= VAE_BATCH_SIZE and not self._is_far_ahead:
            taken = self._queue.take(VAE_BATCH_SIZE)
            if not taken:
                return
            batch = [request for request in taken if not self._is_refused(request)]
            if batch:
                self._engine.submit(batch, self._work.prepare)

    def _is_refused(self, request: GenerationRequest) -> bool:
        reason = self._work.refusal(request)
        if reason is not None:
            self._output.reject(request, Rejection(reason))
            self._queue.end(request)
        return reason is not None

    def _step_engine(self) -> None:
        with self._reporter.busy():
            finished = self._engine.step()
            for one in finished:
                self._output.put(one)
                self._queue.end(one.request)
        if finished:
            self._reporter.tell("generating")

    def _wait(self) -> None:
        # Nothing is under way: the trainer must serve some, or another process end its work.
        if self._output.has_unwritten:
            self._output.flush()  # the trainer may need just these to end the pause
        elif self._is_far_ahead:
            self._queue.give_back()
            self._reporter.idle("paused", POLL_S)
        else:
            self._reporter.idle("waiting", WAIT_FOR_OTHERS_S)
            self._queue.look_again()

    @property
    def _is_far_ahead(self) -> bool:
        return self._limit.is_reached(
            self._output.made,
            self._trainer.served,
            under_way=self._queue.under_way,
            # A pause lasts until all slots have something to do.
            slack=self._engine.room if self._reporter.state == "paused" else 0,
        )

    def _wait_for_newer_plan(self) -> bool:
        """Go on with the plan by the next saliency maps; False if there will be none."""
        if self._work.plan_of is None:
            return False
        self._output.flush()
        self._release_claims()
        while not self._is_plan_over:
            self._reporter.idle("waiting", POLL_S)
        version = self._trainer.saliency_version
        if self._trainer.is_stopping or version is None:
            return False
        self._version = version
        self._queue.replace_plan(self._work.plan_of(version))
        self._limit.start_plan(self._output.made, self._trainer.served)
        return True

    def _release_claims(self) -> None:
        self._queue.release()
        self._output.release_unwritten()


class Output:
    """Stores images that pass the gate, records the others as rejected, and counts both."""

    def __init__(self, store: Store, owner: Owner, work: Work) -> None:
        """Take the cache, and the owner of the claims on images that are not yet written.

        Args:
            store: The cache.
            owner: Owner of the claims.
            work: Says how an image is finished, and which class names are kept with it.
        """
        self._store, self._owner, self._work = store, owner, work
        self._writer = Writer(store, batch_size=WRITE_BATCH, max_queued=2 * WRITE_BATCH)
        self._not_finite_in_a_row = 0
        self.made = 0
        """Images made, written or not; after a flush those that no other process stored first."""
        self.rejected: Counter[str] = Counter()
        """Rejected images by reason."""

    @property
    def written(self) -> int:
        """Images that are in the cache."""
        return self._writer.written

    @property
    def has_unwritten(self) -> bool:
        """Whether images wait to be committed, or to be found stored by another process."""
        return self.made != self._writer.written

    def __enter__(self) -> "Output":
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def __str__(self) -> str:
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(self.rejected.items())) or "none"
        return f"{self.written} images made, rejected: {reasons}"

    def put(self, finished: Finished) -> None:
        """Store a finished image, or record why the gate has rejected it.

        Raises:
            UserError: If too many images in a row are not finite.
        """
        request, verdict = finished.request, finished.verdict
        self._check_finite(verdict.reason)
        if verdict.reason is not None:
            picture = _small_picture(finished)
            self.reject(request, Rejection(verdict.reason, picture, verdict.scores))
            return
        classes = self._work.classes_of(request)
        pixels = self._work.finish(request, to_bytes(finished.image).permute(1, 2, 0).numpy())
        self._writer.put(Entry(request.to_fields(), pixels, verdict.scores, classes))
        self.made += 1

    def reject(self, request: GenerationRequest, rejection: Rejection) -> None:
        """Record a request as rejected, so that no process tries it again."""
        self._store.reject(request.key, request.to_fields(), rejection)
        self.rejected[rejection.reason] += 1

    def flush(self) -> None:
        """Return when everything is committed."""
        self._writer.flush()
        self.made = self._writer.written  # other processes may have stored some first

    def release_unwritten(self) -> None:
        """End the claims on images that could not be written."""
        unwritten = [request_key(entry.request) for entry in self._writer.unwritten()]
        self._store.release(unwritten, self._owner)

    def _check_finite(self, reason: str | None) -> None:
        is_spoilt = reason == NOT_FINITE
        self._not_finite_in_a_row = self._not_finite_in_a_row + 1 if is_spoilt else 0
        if self._not_finite_in_a_row >= MOST_NOT_FINITE:
            raise UserError(
                "generation.dtype must be a number format in which the model makes images, got "
                f"{self._not_finite_in_a_row} in a row that are not finite: set "
                "generation.dtype=float32, or name another generation.model or finetune.path"
            )


def _small_picture(finished: Finished) -> bytes:
    pixels = to_bytes(finished.image.nan_to_num()).permute(1, 2, 0).numpy()
    return small_picture(pixels, PICTURE_PX)


class StatusReporter:
    """Tells the trainer the state of the work, and measures the time spent generating."""

    def __init__(self, trainer: Trainer, output: Output, queue: RequestQueue) -> None:
        """Take the trainer, and the two objects that count images."""
        self._trainer, self._output, self._queue = trainer, output, queue
        self._told_at = 0.0
        self._busy_s = self._paused_s = 0.0
        self.state: State = "loading"
        """The state that was told last."""

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time inside as spent generating."""
        started = time.monotonic()
        yield
        self._busy_s += time.monotonic() - started

    def idle(self, state: State, seconds: float) -> None:
        """Sleep, and tell the state if it is new or was not told for a while."""
        if self.state != state or time.monotonic() - self._told_at > TELL_EVERY_S:
            self.tell(state)
        began = time.monotonic()
        time.sleep(seconds)
        if state == "paused":
            self._paused_s += time.monotonic() - began

    def tell(self, state: State, note: str = "") -> None:
        """Send the state and all counts."""
        self.state, self._told_at = state, time.monotonic()
        output = self._output
        self._trainer.tell(
            Status(
                state=state,
                note=note,
                generated=output.written,
                rejected=output.rejected.total(),
                rejected_by_reason=dict(output.rejected),
                reused=self._queue.reused,
                images_per_s=output.made / self._busy_s if self._busy_s else 0.0,
                generating_s=self._busy_s,
                paused_s=self._paused_s,
            )
        )
