"""A CLIP model that scores whether an image shows a thing (the filter in the code of Diff-Mix)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from online_aug.data.transforms import to_bytes
from online_aug.documents import read_object
from online_aug.errors import UserError, one_line

CLIP_QUESTIONS = ("a photo with a {} on it", "a photo without a {} on it")
"""Diff-Mix's two prompts; the score is the probability of the first."""
Score = Callable[[Float[Tensor, "b 3 r r"]], Float[Tensor, " b"]]
"""Returns how well each image in [0, 1] shows what it should."""


def clip_score(folder: Path, thing: str, device: str) -> Score:
    """Return the probability by a CLIP model that an image shows a thing rather than not.

    Args:
        folder: A CLIP model with its processor in transformers' format.
        thing: What to look for, such as `bird`.
        device: Where the model computes.

    Raises:
        UserError: If there is no such model, or some of its weights are missing.
    """
    model, processor = _load_clip(folder)
    model.to(device).eval()
    texts = [question.format(thing) for question in CLIP_QUESTIONS]

    @torch.no_grad()
    def score(images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, " b"]:
        pictures = [to_bytes(image.cpu()) for image in images]
        asked = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        logits: Tensor = model(**asked.to(device)).logits_per_image
        return logits.float().softmax(dim=1)[:, 0].cpu()

    return score


def _load_clip(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor  # seconds, which only CLIP is worth

    try:
        kind = read_object(folder / "config.json").get("model_type")
        if kind != "clip":
            raise ValueError(f"model_type must be clip in its config.json, got {kind!r}")
        own = {"local_files_only": True, "trust_remote_code": False}
        model, found = CLIPModel.from_pretrained(folder, **own, output_loading_info=True)
        if found["missing_keys"]:
            raise ValueError(f"{len(found['missing_keys'])} of its weights are missing")
        return model, CLIPProcessor.from_pretrained(folder, **own)
    except Exception as error:  # whatever a foreign directory makes transformers raise
        raise UserError(
            "gate.clip must be a directory with a CLIP model and its processor in transformers' "
            f"format, got {folder}: {one_line(error)}"
        ) from error
