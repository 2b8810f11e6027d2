"""A CLIP model that scores whether an image shows a thing (the filter in the code of Diff-Mix)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
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


Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]
_AT_A_TIME = 64


class ClipFeatures:
    """The directions of images and texts by a CLIP model: unit vectors."""

    def __init__(self, folder: Path, key: str, device: str = "cpu") -> None:
        """Load a model.

        Args:
            folder: A CLIP model with its processor in transformers' format.
            key: Configuration key or option that names it, for messages.
            device: Where the model computes.

        Raises:
            UserError: If there is no such model, or some of its weights are missing.
        """
        self._model, self._processor = _load_clip(folder, key)
        self._model.to(device).eval()
        self._device = device

    @torch.no_grad()
    def of_images(self, pictures: Pictures) -> Float[Tensor, "n f"]:
        """Return a row for each image."""
        found = []
        for start in range(0, len(pictures), _AT_A_TIME):
            some = [torch.from_numpy(one).permute(2, 0, 1) for one in pictures[start:][:_AT_A_TIME]]
            asked = self._processor(images=some, return_tensors="pt").to(self._device)
            pooled = self._model.vision_model(**asked).pooler_output
            found.append(F.normalize(self._model.visual_projection(pooled).float(), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        """Return a row for each text."""
        asked = self._processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True
        )
        pooled = self._model.text_model(**asked.to(self._device)).pooler_output
        return F.normalize(self._model.text_projection(pooled).float(), dim=1).cpu()


def _load_clip(folder: Path, key: str = "gate.clip") -> tuple[Any, Any]:
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
            f"{key} must be a directory with a CLIP model and its processor in transformers' "
            f"format, got {folder}: {one_line(error)}"
        ) from error
