"""How much of a plan its methods refuse to make, why, and what to change.

A refusal is a function of the request and of the foregrounds, so it is known before anything is
made, and also in a run whose cache was filled by another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from online_aug.console import percent
from online_aug.request import GenerationRequest, Servable

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

MOST_ASKED = 1000
"""Requests of a plan that are asked for, evenly chosen."""
FEWEST_ASKED = 24
"""Below so many requests a share says little."""
MOST_REFUSED = 0.5
"""Share of a plan that may be refused without a word."""


def refused_shares(experiment: "Experiment", plan: Sequence[Servable]) -> dict[str, float]:
    """Return which share of a plan is refused for each reason, the most frequent first.

    It is empty if the plan is too small to say.
    """
    step = max(1, -(-len(plan) // MOST_ASKED))
    asked = [request for request in plan[::step] if isinstance(request, GenerationRequest)]
    if len(asked) < FEWEST_ASKED:
        return {}
    answers = (
        experiment.methods[request.method].refusal(request, experiment.context_for(request))
        for request in asked
    )
    counts = Counter(reason for reason in answers if reason is not None)
    return {reason: count / len(asked) for reason, count in counts.most_common()}


def refusal_warning(shares: Mapping[str, float]) -> str | None:
    """Say in one line that most of a plan is refused, why, and what to change; None if it is not.

    Args:
        shares: Share of the plan by reason.
    """
    whole = sum(shares.values())
    if whole <= MOST_REFUSED:
        return None
    reasons = ", ".join(f"{percent(share)} {reason}" for reason, share in shares.items())
    return (
        f"{percent(whole)} of the planned images are refused ({reasons}): change saliency.method, "
        "saliency.mask or method.min_source_share; online-aug study masks shows the foregrounds"
    )
