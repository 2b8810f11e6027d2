"""How much of the part of a plan that a machine makes a cache has, and whether any is missing."""

from dataclasses import dataclass

from cache import Store
from online_aug.experiment.experiment import Experiment
from online_aug.planning import Requests
from online_aug.planning.held import held_of, rejected_of
from online_aug.producer.request_order import RequestOrder, Stripe, There
from online_aug.producer.request_queue import LOOKUP_BATCH


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Counts the requests that a machine has to make by what became of them."""

    there: There
    """For each request of the whole plan whether the cache holds its image."""
    planned: int
    """Requests that the machine makes."""
    present: int
    """Images of these that the cache holds."""
    rejected: int
    """Requests of these whose images were rejected."""

    @property
    def missing(self) -> int:
        """Images that are left to be made."""
        return self.planned - self.present - self.rejected


def standing_of(experiment: Experiment, store: Store) -> Standing:
    """Find out what became of the part of a plan that this machine makes."""
    plan, part = experiment.plan, Stripe.of(experiment.config.schedule).whole
    there = held_of(store, plan).there(len(plan))
    planned = present = 0
    for numbers in part.numbers(plan):
        planned += len(numbers)
        present += int(there[numbers].sum())
    rejected = sum(part.holds(plan[number]) for number in rejected_of(store, plan))
    return Standing(there=there, planned=planned, present=present, rejected=rejected)


def is_being_made(store: Store, plan: Requests, there: There) -> bool:
    """Tell whether a living process has claimed an image of a plan, of those that are not there."""
    if not store.stats()["claims_live"]:
        return False
    order = RequestOrder(plan, there=there)
    while requests := order.take(LOOKUP_BATCH):
        if "claimed" in store.status([request.key for request in requests]):
            return True
    return False


def has_missing(experiment: Experiment, store: Store, there: There) -> bool:
    """Tell whether an image is left to make of those that this machine makes.

    It ends with the first one: of what is neither there nor rejected nothing else is asked for.
    """
    part = Stripe.of(experiment.config.schedule).whole
    order = RequestOrder(experiment.plan, part, there=there)
    while requests := order.take(LOOKUP_BATCH):
        found = store.status([request.key for request in requests])
        if {"free", "claimed"} & set(found):
            return True
    return False
