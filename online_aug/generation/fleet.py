"""All generation processes of a run as one."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import get_args

from online_aug.generation.messages import State, Status
from online_aug.generation.supervisor import Supervisor


class Fleet:
    """A supervisor for each generating device; together they work on one plan.

    What one of them is told of images served is its share by what it has made: each pauses when it
    is its own part of `generation.max_ahead` ahead, and together they keep to the whole.
    """

    def __init__(self, members: Sequence[Supervisor]) -> None:
        """Take at least one, not yet started."""
        self._members = members
        self._fresh, self._shared_by = 0, self._made()

    @property
    def status(self) -> Status:
        """Where they stand together; the state is that of the busiest."""
        return reduce(_together, [member.status for member in self._members])

    @property
    def restarts(self) -> int:
        """Of all."""
        return sum(member.restarts for member in self._members)

    def start(self) -> None:
        """Start them; call from the main thread, whose end also ends them."""
        for member in self._members:
            member.start()

    def check(self) -> None:
        """Notice dead or hung ones and restart them in time; cheap enough for every batch.

        Raises:
            UserError: If one failed for a reason that a restart does not mend, or too often.
        """
        for member in self._members:
            member.check()
        if self._made() != self._shared_by:  # else one may pause for what was served long ago
            self.served(self._fresh)

    def served(self, fresh: int) -> None:
        """Tell how many fresh images this run has served so far."""
        self._fresh, self._shared_by = fresh, self._made()
        parts = self._shared_by if any(self._shared_by) else [1] * len(self._members)
        for member, part in zip(self._members, parts, strict=True):
            member.served(fresh * part // sum(parts))

    def publish(self, version: str) -> None:
        """Tell that the cache holds a newer version of the maps."""
        for member in self._members:
            member.publish(version)

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell the classifier's loss on each class."""
        for member in self._members:
            member.publish_losses(losses)

    def stop(self) -> None:
        """End them, all at once: each may have to be waited for."""
        with ThreadPoolExecutor(len(self._members)) as threads:
            list(threads.map(lambda member: member.stop(), self._members))

    def _made(self) -> list[int]:
        return [member.status.generated for member in self._members]


def _together(one: Status, other: Status) -> Status:
    busy = get_args(State)
    return one.after(other).model_copy(
        update={
            "state": min(one.state, other.state, key=busy.index),
            "note": one.note or other.note,
            "images_per_s": one.images_per_s + other.images_per_s,
        }
    )
