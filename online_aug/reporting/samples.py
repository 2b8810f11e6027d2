"""Samples of a run to look at: random and hardest images that it served, and rejected ones.

They are chosen at the end of the run, when the classifier can say which are hard for it, and kept
in `samples.json` as small pictures, so that a report needs neither data nor cache.
"""

import base64
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from cache import Rejection, Store
from cache.contact_sheet import small_picture
from online_aug.data.images import BadImageError
from online_aug.documents import DocumentError, read_text
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.files import from_json, to_json, write_atomically
from online_aug.methods import Picture
from online_aug.reporting.gallery import GalleryRow, cached_row, composed_rows
from online_aug.request import GenerationRequest, Servable
from online_aug.seeding import numpy_rng

SAMPLES_FILE = "samples.json"
LOOKED_AT = 96
"""Served images among which the hardest are looked for."""
SHOWN = 8
"""Samples of each group."""
PICTURE_PX = 112
"""Longest side of a picture."""
Judge = Callable[[Sequence[Picture]], Float[np.ndarray, "n k"]]
"""Returns the classifier's log-probabilities for pictures."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One synthetic image with its stages, what was asked for and what became of it."""

    group: Literal["random", "hardest", "rejected"]
    pictures: Mapping[str, str]
    """WebP files in base64 by the name of the stage, from the source to what was served."""
    source: str
    """The class of the source image."""
    asked_for: str
    """The class, or the instruction, of the prompt."""
    method: str
    """The method, if the run has several; else empty."""
    strength: float | None = None
    """None if no generator made it."""
    soft_label: Mapping[str, float] = field(default_factory=dict)
    """The mass of each class; empty for a rejected image."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the gate measured."""
    loss: float | None = None
    """Divergence of the classifier's answer from the soft label after the last epoch, nats."""
    taken_for: str | None = None
    """The class that the classifier sees in it."""
    reason: str | None = None
    """Why it was rejected."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The content of `samples.json`."""

    looked_at: int
    """Number of served images among which the hardest were found."""
    samples: Sequence[Sample]

    def of(self, group: str) -> list[Sample]:
        """Return the samples of a group."""
        return [sample for sample in self.samples if sample.group == group]


def choose_samples(
    experiment: Experiment,
    store: Store,
    served: Sequence[Servable],
    rejected: Mapping[Servable, Rejection],
    judge: Judge,
) -> Samples:
    """Choose random and hardest images of those served, and rejected ones of every reason.

    Args:
        experiment: Composes and labels the images, as when they were served.
        store: Holds the generated ones.
        served: Requests that the run was served.
        rejected: Requests of the plan that were rejected.
        judge: The classifier.
    """
    order = numpy_rng("samples").permutation(len(served))[:LOOKED_AT]
    found = (cached_row(experiment, store, served[place]) for place in order)
    rows = [row for row in found if row is not None]
    rows += composed_rows(experiment, LOOKED_AT - len(rows))
    judged = _judged(rows, experiment.splits.train.class_names, judge)
    hardest = sorted(judged, key=lambda sample: -(sample.loss or 0.0))[:SHOWN]
    samples = [_in_group(sample, "random") for sample in judged[:SHOWN]]
    samples += [_in_group(sample, "hardest") for sample in hardest]
    return Samples(
        looked_at=len(rows), samples=[*samples, *_rejected_samples(experiment, rejected)]
    )


def write_samples(folder: Path, samples: Samples) -> None:
    """Write `samples.json` into a run directory."""
    write_atomically(folder / SAMPLES_FILE, to_json(samples) + "\n")


def read_samples(folder: Path) -> Samples:
    """Read the samples of a run; there are none if it has not finished.

    Raises:
        UserError: If the file is not what this version writes.
    """
    path = folder / SAMPLES_FILE
    if not path.exists():
        return Samples(looked_at=0, samples=[])
    try:
        return from_json(Samples, read_text(path), str(path))
    except DocumentError as error:
        raise UserError(f"{path} must hold the samples of a run: {error}") from None


def _judged(rows: Sequence[GalleryRow], names: Sequence[str], judge: Judge) -> list[Sample]:
    if not rows:
        return []
    said = judge([list(row.pictures.values())[-1] for row in rows])
    places = {name: number for number, name in enumerate(names)}
    judged = []
    for row, answer in zip(rows, said, strict=True):
        label = {name: mass for name, mass in row.soft_label.items() if mass > 0}
        loss = sum(q * (np.log(q) - answer[places[name]]) for name, q in label.items())
        judged.append(
            Sample(
                group="random",
                pictures={name: _encoded(picture) for name, picture in row.pictures.items()},
                source=row.source_name,
                asked_for=row.target_name,
                method=row.method or "",
                strength=row.strength,
                soft_label=label,
                scores=row.scores,
                loss=max(0.0, float(loss)),
                taken_for=names[int(answer.argmax())],
            )
        )
    return judged


def _in_group(sample: Sample, group: Literal["random", "hardest"]) -> Sample:
    return Sample(**{**vars(sample), "group": group})


def _rejected_samples(
    experiment: Experiment, rejected: Mapping[Servable, Rejection]
) -> list[Sample]:
    by_reason = defaultdict[str, list[GenerationRequest]](list)
    for request, rejection in sorted(rejected.items(), key=lambda entry: not entry[1].picture):
        if isinstance(request, GenerationRequest):
            by_reason[rejection.reason].append(request)
    turns = zip_longest(*(requests[:SHOWN] for requests in by_reason.values()))
    chosen = [request for turn in turns for request in turn if request is not None][: 2 * SHOWN]
    sources = SourceImages(experiment.splits.train, experiment.data.sources)
    names = experiment.splits.train.class_names
    return [
        Sample(
            group="rejected",
            pictures=_of_rejected(sources, request, rejected[request].picture),
            source=names[request.source_label],
            asked_for=experiment.methods[request.method].caption(request)
            or names[request.target_label],
            method=request.method if len(experiment.methods) > 1 else "",
            strength=request.strength,
            scores=rejected[request].scores,
            reason=rejected[request].reason,
        )
        for request in chosen
    ]


def _of_rejected(
    sources: SourceImages, request: GenerationRequest, picture: bytes | None
) -> dict[str, str]:
    found = {}
    try:
        source = sources.by_digest(request.source_digest)
        found["source"] = _encoded(source.permute(1, 2, 0).numpy())
    except BadImageError:
        pass  # it is why the request was rejected
    if picture is not None:
        found["rejected"] = base64.b64encode(picture).decode()
    return found


def _encoded(picture: Picture) -> str:
    return base64.b64encode(small_picture(picture, PICTURE_PX)).decode()
