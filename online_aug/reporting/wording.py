"""Figures as a person reads them; ASCII only, so that every log and terminal can show them."""

import math

from online_aug.records import Served


def percent(share: float) -> str:
    """A share in [0, 1] with one decimal; a dash where it is NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def whole_percent(share: float) -> str:
    """A share in [0, 1] without decimals, but never 0 % for something or 100 % for not all."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def rate(per_s: float) -> str:
    """A rate with two or three significant digits."""
    if not math.isfinite(per_s):
        return "-"
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2f}"


def byte_size(size_bytes: int) -> str:
    """A size in the largest binary unit in which it is at least 1."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 100 else f"{size:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """A time in the two units that matter."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def shares(served: Served) -> dict[str, float]:
    """The four ways a slot is filled as shares of all slots, in [0, 1]; all 0 without slots."""
    counts = {
        "real": served.real,
        "fresh": served.fresh,
        "cached": served.cached,
        "starved": served.starved,
    }
    total = sum(counts.values())
    return {name: count / total if total else 0.0 for name, count in counts.items()}
