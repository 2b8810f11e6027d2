"""How often a generated image is served, kept between two limits (Reverb's rate limiter)."""

import math
from dataclasses import dataclass

from online_aug.config_mixing import MixingConfig

_TOLERATED = 10.0
"""Times the ratio: the error allowed where the configuration says none."""


@dataclass(frozen=True, kw_only=True)
class RateLimiter:
    """`inserts * samples_per_insert - samples` stays within an error of where sampling begins.

    Too low, and serving must pause; too high, and generating must.
    """

    samples_per_insert: float
    min_inserts: int
    """Images that must be there before one is served."""
    tolerance: float
    """Largest error either way, in served images."""
    max_ahead: int
    """Images not served at which the generation process pauses by itself."""

    def can_sample(self, inserts: int, samples: int, wanted: int = 1) -> bool:
        """Whether so many more may be served.

        Args:
            inserts: Images there have been to serve.
            samples: Times one was served.
            wanted: Images to be served.
        """
        lowest = self.min_inserts * self.samples_per_insert - self.tolerance
        error = inserts * self.samples_per_insert - samples - wanted
        return inserts >= self.min_inserts and error >= lowest

    def room(self, inserts: int, samples: int) -> int:
        """How many more images may be made now; negative where there are too many."""
        highest = self.min_inserts * self.samples_per_insert + self.tolerance
        allowed = math.floor((samples + highest) / self.samples_per_insert)
        return max(self.min_inserts, allowed) - inserts

    def paid(self, made: int, inserts: int, samples: int) -> int:
        """What to tell the generation process as served, so that it pauses where there is no room.

        Args:
            made: By the process in this launch.
            inserts: Images there have been to serve.
            samples: Times one was served.
        """
        return made - self.max_ahead + self.room(inserts, samples)


def limiter_of(mixing: MixingConfig, max_ahead: int) -> RateLimiter | None:
    """What the configuration asks for; None where only the ratio is reported."""
    ratio = mixing.samples_per_insert
    if ratio is None:
        return None
    tolerance = mixing.sampling_tolerance
    return RateLimiter(
        samples_per_insert=ratio,
        min_inserts=mixing.min_inserts,
        tolerance=_TOLERATED * max(1.0, ratio) if tolerance is None else tolerance,
        max_ahead=max_ahead,
    )
