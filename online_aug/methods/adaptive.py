"""How far a source is translated: a strength from a fixed set, or one that is learned by class.

With `method.strength: adaptive` the first requests of each class are trials, at strengths that take
turns. The gate accepts or rejects their images, and from this alone follows the strength of all
other requests of the class. So the plan is a function of the trials' outcome, which is recorded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from online_aug.methods.base import (
    MethodContext,
    MethodSettings,
    SharedSections,
    Source,
)
from online_aug.methods.strengths import check_strengths
from online_aug.request import SourceFilter
from online_aug.settings import Count, Fraction, Strengths

ADAPTIVE = "adaptive"
BORROWED = 1.0
"""Trials of a strength for which the share of all classes counts, beside those of one class."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How the strength of a class is learned."""

    strengths: tuple[float, ...]
    """Strengths that are tried."""
    trials: int
    """Images of each source class that are made at them in turn."""
    min_accepted: float
    """Least accepted share of a class at a strength, relative to that at its best one."""


class StrengthSettings(MethodSettings):
    """The keys of a method that replays a part of the trajectory."""

    strength: Literal["adaptive"] | Strengths = (0.5, 0.7, 0.9)
    """Fraction of the diffusion trajectory replayed, (0, 1]; one value or a list to draw from, or
    `adaptive`: for each class the largest that the gate accepts, which needs `gate.classifier`."""
    tried_strengths: Strengths = (0.1, 0.3, 0.5, 0.7, 0.9)
    """`adaptive`: strengths that are tried, (0, 1]."""
    trials_per_class: Count = 10
    """`adaptive`: images of each source class that are made at these strengths in turn, before
    training."""
    min_accepted: Fraction = 0.8
    """`adaptive`: share of a class's images that the gate must accept at a strength, as a part of
    that at the strength of which it accepts most, [0, 1]: a judge also errs on good images."""

    source_filter: SourceFilter = "bilinear"
    """Filter by which the source is made the square that is translated; the published code of
    Diff-Mix and DA-Fusion has `bilinear`, DiffDA-Eval `bicubic`."""

    @property
    def is_adaptive(self) -> bool:
        """Whether the strength is learned."""
        return self.strength == ADAPTIVE

    @property
    def learning(self) -> Learning:
        """How it is learned."""
        return Learning(
            strengths=self.tried_strengths,
            trials=self.trials_per_class,
            min_accepted=self.min_accepted,
        )

    @property
    def possible_strengths(self) -> tuple[float, ...]:
        """Every strength that a request may have."""
        return self.tried_strengths if isinstance(self.strength, str) else self.strength

    @property
    def fixed(self) -> "StrengthSettings":
        """The same settings with the strengths that are tried, instead of the learned one."""
        return self.model_copy(update={"strength": self.possible_strengths})

    def check_steps(self, config: SharedSections) -> None:
        """Raise `ValueError` if a strength would run no step."""
        try:
            check_strengths(self.possible_strengths, config.generation)
        except ValueError as error:
            if not self.is_adaptive:
                raise
            said = str(error).replace("method.strength", "method.tried_strengths")
            raise ValueError(said) from None


def draw_strength(
    settings: StrengthSettings,
    source: Source,
    variant: int,
    target_label: int,
    context: MethodContext,
    rng: np.random.Generator,
) -> float:
    """Return the strength of a request; the same is drawn from `rng` if it is learned.

    Raises:
        ValueError: If it is learned, and the context does not know it.
    """
    possible = settings.possible_strengths
    drawn = float(possible[int(rng.integers(len(possible)))])
    if not settings.is_adaptive:
        return drawn
    if context.strengths is None:
        raise ValueError("context.strengths must be known for method.strength adaptive, got None")
    return context.strengths.of(source.digest, variant, target_label)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The gate's verdict on a trial's image."""

    target_label: int
    strength: float
    is_accepted: bool


@dataclass(frozen=True, kw_only=True)
class StrengthTable:
    """The strength of every request of a method whose strength is learned."""

    trials: Mapping[tuple[str, int], float]
    """Strength of each trial by the digest of its source and the number of its variant."""
    learned: tuple[float, ...] | None = field(default=None)
    """Strength of each class; None before the trials are decided."""

    def of(self, source_digest: str, variant: int, target_label: int) -> float:
        """Return the strength of a request.

        Raises:
            ValueError: If it is no trial, and the trials are not decided.
        """
        trial = self.trials.get((source_digest, variant))
        if trial is not None:
            return trial
        if self.learned is None:
            raise ValueError(f"variant {variant} of {source_digest} must be a trial, it is none")
        return self.learned[target_label]


def trials_of(
    sources: Sequence[Source], variants_per_image: int, settings: Learning
) -> dict[tuple[str, int], float]:
    """Return the strength of each trial by source digest and variant.

    The first variants of a class's images are trials, up to `settings.trials` of them. A pass
    through the images begins one strength later than the one before, so that an image that is tried
    again gets another.

    Args:
        sources: Training images.
        variants_per_image: Requests for each image; there are no more trials than requests.
        settings: Number of trials, and their strengths.
    """
    of_class: dict[int, list[str]] = {}
    for digest, label in sorted({source.digest: source.label for source in sources}.items()):
        of_class.setdefault(label, []).append(digest)
    grid, trials = settings.strengths, {}
    for digests in of_class.values():
        count = min(settings.trials, len(digests) * variants_per_image)
        for number in range(count):
            variant, place = divmod(number, len(digests))
            trials[digests[place], variant] = grid[(number + variant) % len(grid)]
    return trials


def learn_strengths(
    outcomes: Sequence[Outcome], num_classes: int, settings: Learning
) -> tuple[float, ...]:
    """Return for each class the largest strength at which enough of its images are accepted.

    Enough is a part of what is accepted at the best strength. A class has few trials of a strength,
    so the share of all classes counts as `BORROWED` further ones. If nothing at all is accepted,
    the smallest strength is taken.

    Args:
        outcomes: What became of the trials.
        num_classes: Number of classes.
        settings: The strengths, and what is enough.

    Example:
        >>> tried = [Outcome(target_label=0, strength=s, is_accepted=s < 0.6) for s in (0.5, 0.7)]
        >>> learn_strengths(tried, 1, Learning(strengths=(0.5, 0.7), trials=2, min_accepted=0.8))
        (0.5,)
    """
    made = Counter((outcome.target_label, outcome.strength) for outcome in outcomes)
    good = Counter((o.target_label, o.strength) for o in outcomes if o.is_accepted)
    common = {}
    for strength in sorted(settings.strengths):
        tried = sum(made[label, strength] for label in range(num_classes))
        accepted = sum(good[label, strength] for label in range(num_classes))
        common[strength] = accepted / tried if tried else 0.0

    def share(label: int, strength: float) -> float:
        accepted = good[label, strength] + BORROWED * common[strength]
        return accepted / (made[label, strength] + BORROWED)

    learned = []
    for label in range(num_classes):
        shares = {strength: share(label, strength) for strength in common}
        best = max(shares.values())
        enough = [s for s, found in shares.items() if found >= settings.min_accepted * best]
        learned.append(max(enough) if best else min(shares))
    return tuple(learned)
