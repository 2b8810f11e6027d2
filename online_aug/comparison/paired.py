"""Means over seeds and paired differences, each with its 95 % interval of Student's t."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float
    """Half of the 95 % interval; nan with fewer than two seeds."""
    seeds: int

    def text(self, *, signed: bool = False) -> str:
        """Return mean and interval in percent, or a dash without seeds."""
        if self.seeds == 0:
            return "-"
        mean = f"{100 * self.mean:+.1f}" if signed else f"{100 * self.mean:.1f}"
        return mean if math.isnan(self.half_width) else f"{mean} ± {100 * self.half_width:.1f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value for each seed, with its interval."""
    count = len(values)
    if count < 2:
        return Estimate(values[0] if values else math.nan, math.nan, count)
    from scipy.stats import t as student  # slow to import

    quantile = float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(count), count)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """Return the mean of ours minus theirs over the seeds that both have, with its interval."""
    both = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in both])
