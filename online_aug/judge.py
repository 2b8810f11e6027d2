"""The classifier that judges generated images: its weights, its version, its opinion."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.config import Config
from online_aug.dataloader.frames import resize
from online_aug.dataloader.images import BadImageError
from online_aug.dataloader.transforms import normalise
from online_aug.errors import UserError
from online_aug.generation.gate import Classify, ClassRule, Gate, Score, ScoreRule, to_bytes
from online_aug.generation.starting import fit
from online_aug.recipe import Recipe
from online_aug.recipe_context import clip_references
from online_aug.recipe_images import SourceImages
from online_aug.training.classifier import build_classifier, check_name, input_statistics


def check_judge(recipe: Recipe) -> None:
    """Refuse a judge that does not know these classes, before anything is started or written.

    Raises:
        UserError: If its name is unknown, its file does not hold weights of it for the classes,
            there is a rule without a judge or a judge without a rule, or CLIP cannot be loaded or
            has nothing to look for.
    """
    gate = recipe.config.gate
    if gate.has_rule and gate.classifier is None:
        raise UserError(
            "gate.classifier must be a file of weights where gate.min_probability or gate.top_k "
            "is set, got null"
        )
    if gate.classifier is not None and not gate.has_rule:
        raise UserError(
            "gate.min_probability or gate.top_k must be set where gate.classifier is, got neither "
            f"with {gate.classifier}"
        )
    if recipe.is_synthetic and gate.clip is not None:
        _clip_score(recipe)
    if recipe.is_synthetic and gate.classifier is not None:
        _build_judge(recipe.config, len(recipe.splits.train.class_names))


def build_gate(recipe: Recipe) -> Gate:
    """What finished images have to pass, its models on the generator's device.

    Raises:
        UserError: As `check_judge`.
    """
    config = recipe.config
    clip = None if config.gate.clip is None else _clip_rule(recipe)
    if config.gate.classifier is None:
        return Gate(clip=clip)
    judge = _build_judge(config, len(recipe.splits.train.class_names)).to(recipe.device).eval()
    rule = ClassRule(min_probability=config.gate.min_probability, top_k=config.gate.top_k)
    return Gate(opinion_of(judge, config.gate.image_size or config.data.image_size), rule, clip)


def opinion_of(judge: nn.Module, side: int) -> Classify:
    """Class probabilities by a classifier that looks at squares of `side` px."""
    mean, std = input_statistics(judge)
    device = next(judge.parameters()).device

    def classify(images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b k"]:
        seen = torch.stack([resize(to_bytes(image), side) for image in images])
        return F.softmax(judge(normalise(seen.to(device), mean, std)).float(), dim=1)

    return classify


def _clip_rule(recipe: Recipe) -> ScoreRule:
    """CLIP's score of the training images tells how low is too low."""
    images = SourceImages(recipe.splits.train, recipe.sources)
    score, resolution = _clip_score(recipe), recipe.config.generation.resolution
    scores: list[float] = []
    for digest in clip_references(recipe.digests):
        try:
            image = fit(images.by_digest(digest), resolution) / 255
        except BadImageError:
            if recipe.config.data.on_bad_image != "skip":
                raise
            continue
        scores += score(image.unsqueeze(0)).tolist()
    return ScoreRule(score=score, least=float(np.quantile(scores, recipe.config.gate.clip_drop)))


def _clip_score(recipe: Recipe) -> Score:
    from online_aug.generation.clip import clip_score  # transformers: slow to import

    config = recipe.config
    if not config.data.metaclass.strip():
        raise UserError(
            "data.metaclass must say what CLIP is to look for where gate.clip is set, such as "
            f"bird, got {config.data.metaclass!r}"
        )
    assert config.gate.clip is not None  # asked for where it is
    return clip_score(config.gate.clip, config.data.metaclass, recipe.device)


def _build_judge(config: Config, num_classes: int) -> nn.Module:
    name = config.gate.name or config.classifier.name
    if config.gate.name is not None:
        check_name(name, "gate.name")
    settings = config.classifier.model_copy(
        update={"name": name, "checkpoint": config.gate.classifier}
    )
    side = config.gate.image_size or config.data.image_size
    return build_classifier(settings, num_classes, image_size=side, key="gate.classifier")
