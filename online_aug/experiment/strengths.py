"""The strengths that an experiment learns by class, and the trials that they follow from.

What became of the trials is kept in the cache, under a digest of their requests. The strengths are
computed from it again each time, so that every process and later run has the same plan.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from cache import CacheError, Store, cache_exists
from online_aug.documents import DocumentError, parse_json
from online_aug.errors import UserError
from online_aug.methods import Part
from online_aug.methods.adaptive import (
    Learning,
    Outcome,
    StrengthSettings,
    StrengthTable,
    learn_strengths,
    trials_of,
)
from online_aug.planning import Requests
from online_aug.request import GenerationRequest

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment


@dataclass(frozen=True)
class ExperimentStrengths:
    """The learned strengths of the methods of an experiment."""

    experiment: "Experiment"

    @cached_property
    def settings(self) -> dict[str, Learning]:
        """How strengths are learned, for each method that learns them, by name."""
        if not self.experiment.config.is_planned:
            return {}
        return {
            name: method.settings.learning
            for name, method in self.experiment.methods.items()
            if isinstance(method.settings, StrengthSettings) and method.settings.is_adaptive
        }

    @property
    def are_known(self) -> bool:
        """Whether there are none to learn, or all their trials are decided."""
        return all(self._evidence(name) is not None for name in self.settings)

    @cached_property
    def trials(self) -> Requests:
        """The requests whose images decide the strengths; some may be refused by their method."""
        return replace(self.experiment, only_trials=True).plan

    def applied(self, part: Part) -> Part:
        """Return a method with the strengths of its requests in its context.

        Raises:
            UserError: If they are to be learned, and not all trials are decided.
        """
        settings = self.settings.get(part.method.name)
        if settings is None:
            return part
        experiment = self.experiment
        made = experiment.config.generation.variants_per_image
        some = experiment.data.distinct.first_of_classes(settings.trials)  # others are not tried
        trials = trials_of(some, made, settings)
        learned = None if experiment.only_trials else self._learned(part.method.name)
        table = StrengthTable(trials=trials, learned=learned)
        return replace(part, context=replace(part.context, strengths=table))

    def keep(self, store: Store) -> None:
        """Record in the cache what became of the trials.

        Raises:
            UserError: If some are neither made nor rejected.
        """
        for name in self.settings:
            requests = self._accepted_trials(name)
            found = store.status([request.key for request in requests])
            if missing := sum(status not in ("present", "rejected") for status in found):
                raise UserError(
                    f"cache.path must have room for the trials of method.strength adaptive, "
                    f"{missing} of {len(requests)} are gone; raise cache.max_gib"
                )
            evidence = [
                [request.target_label, request.strength, status == "present"]
                for request, status in zip(requests, found, strict=True)
            ]
            store.put_saliency(self._version(name), {name: json.dumps(evidence).encode()})

    def __str__(self) -> str:
        """Say which strength was learned for how many classes, by method."""
        parts = []
        for name in self.settings:
            learned = self._learned(name)
            counts = [f"{s:g} for {learned.count(s)}" for s in sorted(set(learned))]
            parts.append(f"{name} {', '.join(counts)} of {len(learned)} classes")
        return "; ".join(parts)

    def _learned(self, name: str) -> tuple[float, ...]:
        outcomes, cache = self._evidence(name), self.experiment.config.cache.path
        if outcomes is None:
            raise UserError(
                f"cache.path must hold the trials of method.strength adaptive, {cache} lacks some; "
                "run online-aug fill first"
            )
        classes = len(self.experiment.data.images.class_names)
        return learn_strengths(outcomes, classes, self.settings[name])

    def _accepted_trials(self, name: str) -> list[GenerationRequest]:
        # A refusal says nothing of a strength: it comes before any image is made.
        experiment = self.experiment
        method = experiment.methods[name]
        own = [request for request in self.trials if request.method == name]
        return [r for r in own if method.refusal(r, experiment.context_for(r)) is None]

    def _version(self, name: str) -> str:
        keys = sorted(request.key for request in self.trials if request.method == name)
        return f"strengths-{hashlib.blake2b(b''.join(keys), digest_size=16).hexdigest()}"

    def _evidence(self, name: str) -> Sequence[Outcome] | None:
        experiment = self.experiment
        path = experiment.config.cache.path
        if not experiment.is_prepared or not cache_exists(path):
            return None
        with Store(path, readonly=True) as store:
            content = store.get_saliency(self._version(name), name)
        if content is None:
            return None
        try:
            rows = parse_json(content.decode())
        except (DocumentError, UnicodeDecodeError) as error:
            raise CacheError(f"strengths in {path} must be JSON: {error}") from None
        return [
            Outcome(target_label=label, strength=strength, is_accepted=is_accepted)
            for label, strength, is_accepted in rows
        ]
