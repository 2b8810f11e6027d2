"""What became of the records or files that were carried over."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cache.errors import CacheError, CacheFullError

_NAMED = 1000


class LeftOutError(CacheError):
    """A format cannot have this one record; the others can be carried over."""


@dataclass
class Report:
    """Counts, and the first of the problems by name."""

    done: int = 0
    """Written to where they were to go."""
    present: int = 0
    """Were there before."""
    broken: int = 0
    """Left out, each for a reason."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the first thousand that were left out."""
    beside: Counter[str] = field(default_factory=Counter)
    """What else was carried over than records, by name."""

    @property
    def seen(self) -> int:
        """All that were looked at."""
        return self.done + self.present + self.broken

    def leave_out(self, name: str, reason: object) -> None:
        """Count one that is not carried over."""
        self.broken += 1
        if len(self.problems) < _NAMED:
            self.problems.append((name, str(reason)))

    def stop(self, error: CacheFullError) -> None:
        """Leave out the rest, for which there is no room.

        Raises:
            CacheFullError: If nothing was carried over before.
        """
        if not self.done:
            raise error
        self.leave_out("all the rest", error)

    def to_fields(self) -> dict[str, Any]:
        """The report for a program."""
        return {
            "done": self.done,
            "present": self.present,
            "broken": self.broken,
            **self.beside,
            "problems": [{"name": name, "problem": reason} for name, reason in self.problems],
        }
