"""The rules between the keys of `mixing`: what serving one way rules out."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from online_aug.config import Config


def mixing_rules(config: "Config") -> Iterator[str]:
    """Yield a line for each rule that is broken."""
    mixing = config.mixing
    if mixing.policy == "concat" and (
        mixing.final_probability is not None or mixing.class_probability
    ):
        yield (
            "mixing.final_probability and mixing.class_probability must be left out with "
            "mixing.policy concat, whose epochs have one length"
        )
    if mixing.policy == "concat" and mixing.synthetic_probability == 1:
        yield "mixing.synthetic_probability must be below 1 with mixing.policy concat, got 1"
    if mixing.class_balance and mixing.policy != "global":
        yield (
            "mixing.class_balance must be 0 unless mixing.policy is global, got "
            f"{mixing.class_balance:g} for {mixing.policy}, which serves what is made of an image"
        )
    ratio, tolerance = mixing.samples_per_insert, mixing.sampling_tolerance
    if ratio is not None and tolerance is not None and tolerance < max(1, ratio):
        yield (
            "mixing.sampling_tolerance must be at least 1 and at least "
            f"mixing.samples_per_insert, got {tolerance:g} for {ratio:g}: both sides would "
            "block one another"
        )
    if mixing.starvation == "wait":
        yield from _waiting(config)


def _waiting(config: "Config") -> Iterator[str]:
    mixing, schedule = config.mixing, config.schedule
    if mixing.samples_per_insert is not None:
        yield (
            "mixing.samples_per_insert must be null with mixing.starvation wait, which serves "
            f"every image in its turn, got {mixing.samples_per_insert:g}"
        )
    if mixing.imported is not None:
        yield (
            "mixing.imported must be null with mixing.starvation wait, which serves the plan "
            f"in its order, got {mixing.imported}"
        )
    if mixing.class_balance:
        yield (
            "mixing.class_balance must be 0 with mixing.starvation wait, which serves the plan in "
            f"its order, got {mixing.class_balance:g}; method.target_balance plans more images "
            "towards rare classes"
        )
    if mixing.policy != "global" and mixing.max_times_sampled is not None:
        yield (
            "mixing.max_times_sampled must be null with mixing.starvation wait and "
            f"mixing.policy {mixing.policy}, got {mixing.max_times_sampled}"
        )
    if schedule.priority != "uniform":
        yield (
            "schedule.priority must be uniform with mixing.starvation wait, which serves the "
            f"plan in its order, got {schedule.priority}"
        )
    if not schedule.helps:
        yield (
            "schedule.helps must be true with mixing.starvation wait, which needs the whole "
            "plan, got false"
        )
