"""Back-pressure: how far generation may run ahead of training, and how often an image is served.

The parts in the order in which they act. `RateLimiter` keeps the ratio of `samples_per_insert`, if
one is set. `BackPressure` stands in the trainer and tells the generation processes how many images
were served. `divide_served` splits this count among several processes. `AheadLimit` stands in a
generation process and says when it has to pause.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from online_aug.config import Config

_TOLERATED = 10.0
"""Default of `mixing.sampling_tolerance`, in multiples of the ratio."""


class GeneratorStatus(Protocol):
    """Progress of the generation processes of a node, counted over their restarts."""

    @property
    def state(self) -> str:
        """Their present work, such as `generating` or `paused`; `full` if the cache is."""

    @property
    def note(self) -> str:
        """Why the cache takes no more images, if it is full."""

    @property
    def generated(self) -> int:
        """Images put into the cache."""

    @property
    def rejected(self) -> int:
        """Images refused by the gate."""

    @property
    def images_per_s(self) -> float:
        """Images per second while generating; pauses are left out."""

    @property
    def rejected_by_reason(self) -> Mapping[str, int]:
        """Images refused by the gate, by reason."""

    @property
    def generating_s(self) -> float:
        """Time spent generating, summed over the processes."""

    @property
    def paused_s(self) -> float:
        """Time in which back-pressure let them wait for training, summed over the processes."""


class GeneratorProcess(Protocol):
    """The generation processes of a node, as the loader uses them."""

    @property
    def restarts(self) -> int:
        """How often one died and was started again."""

    @property
    def status(self) -> GeneratorStatus:
        """Their progress."""

    def start(self) -> None:
        """Start them."""

    def check(self) -> None:
        """Restart those that died; raise if that does not help."""

    def served(self, fresh: int) -> None:
        """Tell them how many fresh images were served since they were started."""

    def publish(self, version: str) -> None:
        """Tell them that the cache holds newer saliency maps."""

    def publish_losses(self, losses: Sequence[float | None]) -> None:
        """Tell them the classifier's loss on each class, None for a class not seen yet."""

    def stop(self) -> None:
        """End them."""


class Supply(Protocol):
    """The counts of a sample pool that back-pressure depends on."""

    @property
    def inserts(self) -> int:
        """Images there have been to serve in this run."""

    @property
    def samples(self) -> int:
        """Times that this rank has served one."""

    @property
    def sharers(self) -> int:
        """Ranks that are served from the same cache."""


@dataclass(frozen=True, kw_only=True)
class RateLimiter:
    """Keep `inserts * samples_per_insert - samples` close to its value when serving may begin.

    Reverb's rate limiter (arXiv:2102.04736): below the lower limit serving has to wait, above the
    upper limit generating has to.
    """

    samples_per_insert: float
    """Times that an image is to be served on average."""
    min_inserts: int
    """Images that must be in the cache before one is served."""
    tolerance: float
    """Largest deviation in either direction, in served images."""
    max_ahead: int
    """Unserved images at which the generation process pauses by itself."""

    def can_sample(self, inserts: int, samples: int, wanted: int = 1) -> bool:
        """Return whether `wanted` more images may be served.

        Args:
            inserts: Images there have been to serve.
            samples: Times that one was served.
            wanted: Images about to be served.
        """
        lowest = self.min_inserts * self.samples_per_insert - self.tolerance
        error = inserts * self.samples_per_insert - samples - wanted
        return inserts >= self.min_inserts and error >= lowest

    def room(self, inserts: int, samples: int) -> int:
        """Return how many more images may be made now; negative if there are too many."""
        highest = self.min_inserts * self.samples_per_insert + self.tolerance
        allowed = math.floor((samples + highest) / self.samples_per_insert)
        return max(self.min_inserts, allowed) - inserts

    def paid(self, made: int, inserts: int, samples: int) -> int:
        """Return the count to report as served, so that generation pauses if there is no room.

        Args:
            made: Images that the generation process has made in this launch.
            inserts: Images there have been to serve.
            samples: Times that one was served.
        """
        return made - self.max_ahead + self.room(inserts, samples)


def limiter_of(config: Config) -> RateLimiter | None:
    """Return the rate limiter that `mixing` configures; None if the ratio is only reported."""
    mixing = config.mixing
    ratio = mixing.samples_per_insert
    if ratio is None:
        return None
    tolerance = mixing.sampling_tolerance
    return RateLimiter(
        samples_per_insert=ratio,
        min_inserts=mixing.min_inserts,
        tolerance=_TOLERATED * max(1.0, ratio) if tolerance is None else tolerance,
        max_ahead=config.generation.max_ahead,
    )


class BackPressure:
    """Decides whether a generated image may be served, and reports what was served.

    One rank of each node reports to the generation processes. The ranks of a node are served equal
    shares, so each one multiplies its own count by the number of ranks.
    """

    def __init__(
        self,
        pool: Supply,
        generator: GeneratorProcess | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        """Report to `generator`.

        Args:
            pool: Counts of what could be and what was served.
            generator: None if another rank reports, or if nothing is generated.
            limiter: Limits how often an image is served; None serves as often as one is drawn.
        """
        self.generator = generator
        self._pool, self._limiter = pool, limiter
        self._fresh_at_start = self._fresh = 0

    def may_serve(self) -> bool:
        """Return whether each rank of the node may serve one more generated image."""
        pool = self._pool
        return self._limiter is None or self._limiter.can_sample(
            pool.inserts, pool.samples * pool.sharers, wanted=pool.sharers
        )

    def start(self, fresh: int) -> None:
        """Begin to count when the generation processes start.

        Args:
            fresh: Fresh images that this rank was served before, in this run.
        """
        self._fresh_at_start = self._fresh = fresh

    def report(self, fresh: int) -> None:
        """Tell the generation processes how many images were served; call it after every batch.

        Args:
            fresh: Fresh images that this rank was served in this run.
        """
        generator, limiter, pool = self.generator, self._limiter, self._pool
        if generator is None:
            return
        if limiter is not None:
            samples = pool.samples * pool.sharers
            generator.served(limiter.paid(generator.status.generated, pool.inserts, samples))
        elif fresh > self._fresh:
            generator.served((fresh - self._fresh_at_start) * pool.sharers)
        self._fresh = fresh


def divide_served(fresh: int, made: Sequence[int]) -> list[int]:
    """Divide a count of served images among generation processes, by what each has made.

    Each process then pauses when it is its own part of `generation.max_ahead` ahead, and together
    they keep to the whole.
    """
    parts = made if any(made) else [1] * len(made)
    return [fresh * part // sum(parts) for part in parts]


def max_ahead_of_each(config: Config, processes: int) -> int | None:
    """Return how many images each generation process may be ahead; None for any number.

    A trainer that waits for one certain image cannot serve others to end a pause, so with
    `mixing.starvation: wait` nothing pauses.
    """
    if config.mixing.starvation == "wait":
        return None
    return -(-config.generation.max_ahead // processes)


class AheadLimit:
    """Says when a generation process is so far ahead of training that it has to pause."""

    def __init__(self, max_ahead: int | None) -> None:
        """Allow `max_ahead` unserved images; None never pauses."""
        self._max_ahead = max_ahead
        self._made = self._served = 0

    def start_plan(self, made: int, served: int) -> None:
        """Count from here on: what was made by an older plan may never be served."""
        self._made, self._served = made, served

    def is_reached(self, made: int, served: int, *, under_way: int, slack: int = 0) -> bool:
        """Return whether no more images are to be begun now.

        Args:
            made: Images made by this process.
            served: Images served, as the trainer reported.
            under_way: Images begun and not finished.
            slack: Images below the limit at which a pause ends, so that all slots have work then.
        """
        if self._max_ahead is None:
            return False
        ahead = (made - self._made) - (served - self._served)
        return ahead + under_way >= max(1, self._max_ahead - slack)
