"""The plan of a recipe worked through with no trainer to serve, and a bar that shows it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from cache import Store
from online_aug.errors import UserError
from online_aug.generation.messages import Status
from online_aug.generation.order import part_of
from online_aug.generation.service import Service
from online_aug.recipe import Recipe
from online_aug.records import GenerationRequest
from online_aug.reporting.progress import Tally, progress
from online_aug.reporting.wording import byte_size, rate
from online_aug.stores import pin
from online_aug.training.interrupts import Interrupt
from online_aug.workload import load_generator, work_of


class Nobody:
    """Whom images are made for ahead of training: serves none, shows how far the work is."""

    served = 0
    saliency_version = None
    class_losses = None

    def __init__(self, bar: Tally, store: Store, interrupt: Interrupt) -> None:
        """Take what to show the work on, and whose signals end it."""
        self._bar, self._store, self._interrupt = bar, store, interrupt
        self.status = Status(state="loading")

    @property
    def is_stopping(self) -> bool:
        """A signal has come."""
        return self._interrupt.received is not None

    def tell(self, status: Status) -> None:
        """Show where the work stands."""
        self.status = status
        done = status.generated + status.rejected + status.reused
        self._bar.advance(done - self._bar.done, note=self._note(status))

    def _note(self, status: Status) -> str:
        doing = f"{rate(status.images_per_s)} images/s"
        if status.state == "waiting":
            doing = "waiting for another process"
        parts = [doing, _rejections(status.rejected_by_reason), _size_of(self._store)]
        return ", ".join(part for part in parts if part)


def describe_plan(recipe: Recipe, store: Store) -> str:
    """How much of a recipe's plan a cache has, in one line."""
    status = Counter(_status(part_of(recipe.plan, recipe.config.schedule), store))
    rejected = f", {status['rejected']} rejected" if status["rejected"] else ""
    there = f"{status['present']} of the plan's {status.total()} images"
    return f"cache {store.path}: {there}{rejected}, {_size_of(store)} in all"


def make_missing(recipe: Recipe, store: Store, interrupt: Interrupt) -> bool:
    """Make what a cache lacks of a plan, or as much as there is time for; False if it lacks none.

    Args:
        recipe: Fine-tuned, its maps made.
        store: What is there or made of the plan stays in it; other images may be evicted.
        interrupt: Whose signals end the work; what is finished by then is stored.

    Raises:
        UserError: If the cache is full before the end.
    """
    work = work_of(recipe)
    found = zip(work.plan, _status(work.plan, store), strict=True)
    missing = [request for request, status in found if status in ("free", "claimed")]
    if not missing:
        return False
    pin(store, [request.key for request in work.plan])
    with (
        closing(load_generator(recipe)) as generator,
        progress("filling", len(missing)) as bar,
    ):
        nobody = Nobody(bar, store, interrupt)
        Service(replace(work, plan=missing, max_ahead=None), store, generator, nobody).run()
    if nobody.status.state == "full":
        raise UserError(
            f"cache.path must have room for the plan, {store.path} is full after {bar.done} of "
            f"{bar.total} images; raise cache.max_gib, free disk space, or name another"
        )
    return True


def _status(requests: Sequence[GenerationRequest], store: Store) -> Sequence[str]:
    return store.status([request.key for request in requests])


def _rejections(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    named = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"rejected: {named}"


def _size_of(store: Store) -> str:
    return byte_size(store.stats()["stored_bytes"])
