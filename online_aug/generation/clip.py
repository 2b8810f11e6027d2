"""Whether an image shows a thing at all, by a CLIP model: the filter of Diff-Mix's code."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from online_aug.errors import UserError, one_line
from online_aug.generation.gate import Score, to_bytes

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
