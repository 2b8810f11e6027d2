"""The gate: which generated images are rejected, by which rule, and the version of that rule.

Images that are not finite, black, white or flat are always rejected. On request (`gate.*`) a
classifier judges whether an image shows its class, and a CLIP model whether it shows an object of
the kind at all (the filter in the code of Diff-Mix, arXiv:2403.19600).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from online_aug.classifier.model import build_classifier, check_name, input_statistics
from online_aug.config import Config
from online_aug.data.images import BadImageError
from online_aug.data.transforms import fit_square, normalise, to_bytes
from online_aug.diffusion.weights import digest_folder
from online_aug.errors import UserError
from online_aug.generation.clip import Score, clip_score
from online_aug.request import GenerationRequest
from online_aug.saliency.maps import file_digest
from online_aug.settings import decided

FLAT_LEVELS = 2.0
"""Standard deviation over all pixels, in grey levels of 255, below which an image is blank."""
EXTREME_LEVELS = 8.0
"""Distance of a blank image's mean from 0 or 255 within which it is called black or white."""
NOT_FINITE = "not finite"
"""Why an image with NaN or infinity in it is rejected."""
CLIP_REFERENCES = 1000
"""Most training images that CLIP scores to set its rule."""
Classify = Callable[[Float[Tensor, "b 3 r r"]], Float[Tensor, "b k"]]
"""Returns the class probabilities of images in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image may be used, and the scores that were measured."""

    reason: str | None = None
    """Why the image is rejected; None if it is not."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """`probability_source` and `probability_target` by a classifier, `clip` by CLIP."""


class Finished(NamedTuple):
    """A request with its image in [0, 1] (NaN if the model made NaN) and the gate's verdict."""

    request: GenerationRequest
    image: Float[Tensor, "3 r r"]
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class ClassRule:
    """When the class probabilities of an image are enough to accept it.

    An image lies between the classes of its source and of its prompt, which are one for most
    methods; so it counts whether the classifier sees either of them, unless the prompt's is asked
    for.
    """

    min_probability: float = 0.0
    """Least probability of both classes together."""
    top_k: int | None = None
    """One of them must be among this many most probable classes (SaSPA, NeurIPS 2024, takes 10)."""
    only_target: bool = False
    """Whether the prompt's class alone counts."""

    def intended(self, request: GenerationRequest) -> set[int]:
        """Return the classes of which the image of a request must show one."""
        target = {request.target_label}
        return target if self.only_target else target | {request.source_label}

    def is_met(self, probabilities: Float[Tensor, " k"], classes: set[int]) -> bool:
        """Tell whether an image with these class probabilities shows one of the classes."""
        intended = probabilities[sorted(classes)]
        if intended.sum().item() < self.min_probability:
            return False
        if self.top_k is None:
            return True
        return int((probabilities > intended.max()).sum()) < self.top_k


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """A CLIP model's score, and the least score that is enough."""

    score: Score
    least: float

    def verdicts(self, images: Float[Tensor, "b 3 r r"]) -> list[Verdict]:
        """Return a verdict for each image."""
        return [
            Verdict(reason="low CLIP score" if score < self.least else None, scores={"clip": score})
            for score in self.score(images).tolist()
        ]


@dataclass(frozen=True)
class Gate:
    """Judges finished images; without classifier and CLIP only blank ones are rejected."""

    classify: Classify | None = None
    rule: ClassRule = ClassRule()
    clip: ScoreRule | None = None

    @torch.no_grad()
    def __call__(
        self, requests: Sequence[GenerationRequest], images: Float[Tensor, "b 3 r r"]
    ) -> list[Verdict]:
        """Return a verdict for each image in [0, 1], in order."""
        verdicts = [Verdict(reason=rejection(image)) for image in images]
        left = [place for place, verdict in enumerate(verdicts) if verdict.reason is None]
        if not left:
            return verdicts
        opinions = []
        if self.classify is not None:
            rows = zip(left, self.classify(images[left]).cpu(), strict=True)
            opinions.append([self._judge_class(requests[place], row) for place, row in rows])
        if self.clip is not None:
            opinions.append(self.clip.verdicts(images[left]))
        for place, *given in zip(left, *opinions, strict=True):
            verdicts[place] = _joined(given)
        return verdicts

    def _judge_class(self, request: GenerationRequest, row: Float[Tensor, " k"]) -> Verdict:
        source, target = request.source_label, request.target_label
        is_met = self.rule.is_met(row, self.rule.intended(request))
        scores = {
            "probability_source": row[source].item(),
            "probability_target": row[target].item(),
        }
        return Verdict(reason=None if is_met else "off-class", scores=scores)


def rejection(image: Float[Tensor, "3 h w"]) -> str | None:
    """Say why an image in [0, 1] is blank or not finite; None if it is neither."""
    if not image.isfinite().all():
        return NOT_FINITE
    grey = image.mean(0) * 255
    if grey.std() >= FLAT_LEVELS:
        return None
    mean = grey.mean()
    if mean < EXTREME_LEVELS:
        return "black"
    return "white" if mean > 255 - EXTREME_LEVELS else "flat"


def _joined(verdicts: Sequence[Verdict]) -> Verdict:
    reasons = [verdict.reason for verdict in verdicts if verdict.reason is not None]
    scores = {name: value for verdict in verdicts for name, value in verdict.scores.items()}
    return Verdict(reason=next(iter(reasons), None), scores=scores)


def check_gate(config: Config, num_classes: int, device: str) -> None:
    """Refuse a gate that cannot judge these classes, before anything is started or written.

    Raises:
        UserError: If a rule has no classifier or a classifier no rule, its name is unknown, its
            file does not fit, or CLIP cannot be loaded or has nothing to look for.
    """
    gate = config.gate
    if (gate.has_rule or gate.shows == "target") and gate.classifier is None:
        raise UserError(
            "gate.classifier must be self or a file of weights where gate.min_probability, "
            "gate.top_k or gate.shows is set, got null"
        )
    if gate.classifier is not None and not gate.has_rule:
        raise UserError(
            "gate.min_probability or gate.top_k must be set where gate.classifier is, got neither "
            f"with {gate.classifier}"
        )
    if config.mixing.is_synthetic and gate.clip is not None:
        _load_clip_score(config, device)
    if config.mixing.is_synthetic and gate.weights is not None:
        _load_judge(config, num_classes)


def build_gate(
    config: Config,
    num_classes: int,
    load: Callable[[str], UInt8[Tensor, "3 h w"]],
    digests: Sequence[str],
    device: str,
) -> Gate:
    """Build the configured gate, its models on a device.

    Args:
        config: Names the models and their rules; a judge of its own is trained, and its file named.
        num_classes: Number of classes of the data set.
        load: Returns the training image with a digest; CLIP scores some of them.
        digests: Digests of the training images.
        device: Where the images are generated.

    Raises:
        UserError: As `check_gate`.
        BadImageError: If a training image cannot be read, unless `data.on_bad_image` is skip.
    """
    gate, clip = config.gate, None
    if gate.clip is not None:
        score = _load_clip_score(config, device)
        least = float(np.quantile(_reference_scores(config, score, load, digests), gate.clip_drop))
        clip = ScoreRule(score=score, least=least)
    if gate.weights is None:
        return Gate(clip=clip)
    judge = _load_judge(config, num_classes).to(device).eval()
    rule = ClassRule(
        min_probability=gate.min_probability,
        top_k=gate.top_k,
        only_target=gate.shows == "target",
    )
    return Gate(classify_with(judge, judge_size(config)), rule, clip)


def classify_with(judge: nn.Module, size: int) -> Classify:
    """Return the class probabilities by a classifier that looks at squares of `size` px."""
    mean, std = input_statistics(judge)
    device = next(judge.parameters()).device

    def classify(images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b k"]:
        seen = torch.stack([fit_square(to_bytes(image), size) for image in images])
        return F.softmax(judge(normalise(seen.to(device), mean, std)).float(), dim=1)

    return classify


def gate_version(config: Config, digests: Sequence[str]) -> str | None:
    """Return the version of the configured gate, which is part of every request; None if none.

    Args:
        config: Names the models and their rules, as for `build_gate`.
        digests: Digests of the training images, on which CLIP's rule depends.

    Raises:
        UserError: If the file of the classifier's weights cannot be read.
    """
    versions = [_judge_version(config), _clip_version(config, digests)]
    return " ".join(version for version in versions if version) or None


def _judge_version(config: Config) -> str | None:
    gate = config.gate
    if gate.weights is None:
        return None
    try:
        digest = file_digest(gate.weights)
    except OSError as error:
        raise UserError(
            f"gate.classifier must be a file of weights, cannot read {gate.weights}: "
            f"{error.strerror}"
        ) from None
    rule = f"{gate.min_probability!r}-{gate.top_k}" + "-target" * (gate.shows == "target")
    judge = config.classifier.helper(gate.name, gate.weights)
    return f"{judge.name}{judge.statistics}-{judge_size(config)}-{digest}-{rule}"


def _clip_version(config: Config, digests: Sequence[str]) -> str | None:
    gate = config.gate
    if gate.clip is None:
        return None
    rule = [config.data.metaclass, gate.clip_drop, *sorted(digests)[:CLIP_REFERENCES]]
    digest = hashlib.blake2b(json.dumps(rule).encode(), digest_size=8).hexdigest()
    return f"clip-{digest_folder(gate.clip)}-{digest}"


def judge_size(config: Config) -> int:
    """Return the side of the square at which the judge looks at images, px."""
    return config.gate.image_size or config.data.image_size


def _load_judge(config: Config, num_classes: int) -> nn.Module:
    if config.gate.name is not None:
        check_name(config.gate.name, "gate.name")
    settings = config.classifier.helper(config.gate.name, config.gate.weights)
    side, key = judge_size(config), "gate.classifier"
    return build_classifier(settings, num_classes, image_size=side, key=key, needs_head=True)


def _reference_scores(
    config: Config,
    score: Score,
    load: Callable[[str], UInt8[Tensor, "3 h w"]],
    digests: Sequence[str],
) -> list[float]:
    scores: list[float] = []
    for digest in sorted(digests)[:CLIP_REFERENCES]:
        try:
            image = fit_square(load(digest), decided(config.generation.resolution)) / 255
        except BadImageError:
            if config.data.on_bad_image != "skip":
                raise
            continue
        scores += score(image.unsqueeze(0)).tolist()
    return scores


def _load_clip_score(config: Config, device: str) -> Score:
    if not config.data.metaclass.strip():
        raise UserError(
            "data.metaclass must say what CLIP is to look for where gate.clip is set, such as "
            f"bird, got {config.data.metaclass!r}"
        )
    assert config.gate.clip is not None  # the callers have looked
    return clip_score(config.gate.clip, config.data.metaclass, device)
