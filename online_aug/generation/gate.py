"""What must not reach the cache: images that are no images, or of another class than intended.

Whether an image shows a thing at all, by a CLIP model: the filter of Diff-Mix's code.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from online_aug.errors import UserError, one_line
from online_aug.request import GenerationRequest

FLAT_LEVELS = 2.0
"""Standard deviation over all pixels, in grey levels of 255, below which an image is blank."""
EXTREME_LEVELS = 8.0
"""Distance of a blank image's mean from 0 or 255 within which it is called black or white."""
NOT_FINITE = "not finite"
"""Why an image with NaN or infinity in it is rejected."""
Classify = Callable[[Float[Tensor, "b 3 r r"]], Float[Tensor, "b k"]]
"""Images in [0, 1] to class probabilities."""
Score = Callable[[Float[Tensor, "b 3 r r"]], Float[Tensor, " b"]]
"""Images in [0, 1] to how well each shows what it should."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image may be used, and what was measured."""

    reason: str | None = None
    """Why it is rejected; None if it is not."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """`probability_source` and `probability_target`, where a classifier judged; CLIP's `clip`."""


@dataclass(frozen=True, kw_only=True)
class ClassRule:
    """When a classifier's opinion is enough to reject an image.

    An image is asked for between the classes of its source and its prompt, which are one for most
    methods, so what counts is whether the classifier sees either of them.
    """

    min_probability: float = 0.0
    """Least probability of both classes together."""
    top_k: int | None = None
    """One of them must be among this many most probable classes (SaSPA, NeurIPS 2024, takes 10)."""

    def is_met(self, probabilities: Float[Tensor, " k"], classes: set[int]) -> bool:
        """Whether an image with these class probabilities shows one of the classes."""
        intended = probabilities[sorted(classes)]
        if intended.sum().item() < self.min_probability:
            return False
        if self.top_k is None:
            return True
        return int((probabilities > intended.max()).sum()) < self.top_k


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """A CLIP model's score, and the least that is enough."""

    score: Score
    least: float

    def verdicts(self, images: Float[Tensor, "b 3 r r"]) -> list[Verdict]:
        """One for each image."""
        return [
            Verdict(reason="low CLIP score" if score < self.least else None, scores={"clip": score})
            for score in self.score(images).tolist()
        ]


@dataclass(frozen=True)
class Gate:
    """Judges finished images; without classifier and CLIP only whether they are images at all."""

    classify: Classify | None = None
    rule: ClassRule = ClassRule()
    clip: ScoreRule | None = None

    @torch.no_grad()
    def __call__(
        self, requests: Sequence[GenerationRequest], images: Float[Tensor, "b 3 r r"]
    ) -> list[Verdict]:
        """A verdict for each image in [0, 1], in order."""
        verdicts = [Verdict(reason=rejection(image)) for image in images]
        fit = [place for place, verdict in enumerate(verdicts) if verdict.reason is None]
        if not fit:
            return verdicts
        opinions = []
        if self.classify is not None:
            rows = zip(fit, self.classify(images[fit]).cpu(), strict=True)
            opinions.append([self._judge(requests[place], row) for place, row in rows])
        if self.clip is not None:
            opinions.append(self.clip.verdicts(images[fit]))
        for place, *said in zip(fit, *opinions, strict=True):
            verdicts[place] = _joined(said)
        return verdicts

    def _judge(self, request: GenerationRequest, row: Float[Tensor, " k"]) -> Verdict:
        source, target = request.source_label, request.target_label
        return Verdict(
            reason=None if self.rule.is_met(row, {source, target}) else "off-class",
            scores={
                "probability_source": row[source].item(),
                "probability_target": row[target].item(),
            },
        )


def _joined(verdicts: Sequence[Verdict]) -> Verdict:
    reasons = [verdict.reason for verdict in verdicts if verdict.reason is not None]
    scores = {name: value for verdict in verdicts for name, value in verdict.scores.items()}
    return Verdict(reason=next(iter(reasons), None), scores=scores)


def to_bytes(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """An image in [0, 1] as it is stored, to the nearest level."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def rejection(image: Float[Tensor, "3 h w"]) -> str | None:
    """Why an image in [0, 1] is not fit to be used, or None if it is."""
    if not image.isfinite().all():
        return NOT_FINITE
    grey = image.mean(0) * 255
    if grey.std() >= FLAT_LEVELS:
        return None
    mean = grey.mean()
    if mean < EXTREME_LEVELS:
        return "black"
    return "white" if mean > 255 - EXTREME_LEVELS else "flat"


QUESTIONS = ("a photo with a {} on it", "a photo without a {} on it")
"""Diff-Mix's two prompts; the score is the probability of the first."""


def clip_score(folder: Path, thing: str, device: str) -> Score:
    """How probable it is that an image shows a thing rather than not, by a CLIP model.

    Args:
        folder: A CLIP model with its processor in transformers' format.
        thing: Such as `bird`.
        device: Where the model goes.

    Raises:
        UserError: If there is no such model, or some of its weights are missing.
    """
    model, processor = _load(folder)
    model.to(device).eval()
    texts = [question.format(thing) for question in QUESTIONS]

    @torch.no_grad()
    def score(images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, " b"]:
        pictures = [to_bytes(image.cpu()) for image in images]
        asked = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        logits: Tensor = model(**asked.to(device)).logits_per_image
        return logits.float().softmax(dim=1)[:, 0].cpu()

    return score


def _load(folder: Path) -> tuple[CLIPModel, CLIPProcessor]:
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        if kind != "clip":
            raise ValueError(f"its model is of type {kind}")
        model, found = CLIPModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        if found["missing_keys"]:
            raise ValueError(f"{len(found['missing_keys'])} of its weights are missing")
        return model, CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            "gate.clip must be a directory with a CLIP model and its processor in transformers' "
            f"format, got {folder}: {one_line(error)}"
        ) from error
