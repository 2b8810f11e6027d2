"""Weights from a file: read without running code, fitted to a timm model by name or by order."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from online_aug.errors import UserError, first_line

_SHOWN_NAMES = 3
_PARTS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of a checkpoint that hold the weights, best first (timm)."""
_WRAPPED = "module."
"""Begins every name in a file that was saved from a model wrapped for several GPUs."""
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """The weights of a file under the names of a model."""

    weights: Weights
    has_head: bool
    """Whether the file's head is among them; a head for other classes is left out."""
    is_by_order: bool
    """Whether the names of the file were unknown, so that order and shapes decided."""


def read_weights(path: Path, key: str) -> Weights:
    """Read named tensors from a safetensors file or a PyTorch checkpoint, timm's included.

    Args:
        path: The file.
        key: Configuration key of the file, for error messages.

    Raises:
        UserError: If the file is missing, cannot be read, or holds something else.
    """
    check_file(path, key)
    try:
        if path.suffix == ".safetensors":
            return _finite(safetensors.torch.load_file(path), path, key)
        # timm saves its command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # each format has its own kind of failure
        raise UserError(
            f"{key} must be safetensors or a torch.save of plain tensors, "
            f"cannot read {path}: {first_line(error)}"
        ) from None
    if isinstance(weights, dict):
        weights = next((weights[part] for part in _PARTS if _is_dict(weights, part)), weights)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise UserError(f"{key} must hold named tensors, {path} holds something else")
    named = {str(name).removeprefix(_WRAPPED): value for name, value in weights.items()}
    return _finite(named, path, key)


def _finite(weights: Weights, path: Path, key: str) -> Weights:
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{key} must hold finite weights, {name} in {path} has NaN or infinity: the "
                "training that wrote it has diverged"
            )
    return weights


def check_file(path: Path | None, key: str = "classifier.checkpoint") -> None:
    """Raise a `UserError` if a file of weights is named and is not there."""
    if path is not None and not path.is_file():
        raise UserError(f"{key} must be a file of weights, got {path}")


def fit(weights: Weights, classifier: nn.Module) -> Fitted | None:
    """Return the weights under the names of the classifier; None if they do not fit.

    Names decide. If they are not the classifier's, weights fit that agree with its own in number
    and, one by one in order, in shape. The head may be missing or for other classes.
    """
    own, heads = classifier.state_dict(), tuple(head_prefixes(classifier))
    body = {name: value for name, value in own.items() if not name.startswith(heads or ("\0",))}
    if body.keys() <= weights.keys():
        others = {name: weights[name] for name in weights.keys() - body.keys()}
        is_known = all(name.startswith(heads) for name in others) if heads else not others
        return _joined(own, body, weights, is_by_order=False) if is_known else None
    names = next((names for names in (own, body) if len(names) == len(weights)), None)
    if names is None or any(a != b and b in own for a, b in zip(names, weights, strict=True)):
        return None
    renamed = dict(zip(names, weights.values(), strict=True))
    return _joined(own, body, renamed, is_by_order=True)


def _joined(own: Weights, body: Weights, weights: Weights, *, is_by_order: bool) -> Fitted | None:
    if _other_shapes(body, weights):
        return None
    is_whole = own.keys() == weights.keys() and not _other_shapes(own, weights)
    kept = own if is_whole else body
    return Fitted({name: weights[name] for name in kept}, is_whole, is_by_order)


def head_prefixes(classifier: Any) -> Iterator[str]:
    """Yield the beginning of the names of each head, the layers that make class scores."""
    found = classifier.get_classifier() if hasattr(classifier, "get_classifier") else ()
    heads = found if isinstance(found, tuple) else (found,)
    for name, module in classifier.named_modules():
        if any(module is head for head in heads) and any(True for _ in module.parameters()):
            yield f"{name}."


def misfit(weights: Weights, classifier: nn.Module) -> str:
    """Say which names and shapes of the weights are not those of the classifier."""
    own = classifier.state_dict()
    problems = [
        *_listed("lacks", sorted(own.keys() - weights.keys())),
        *_listed("has unknown", sorted(weights.keys() - own.keys())),
        *_listed("differs in shape in", _other_shapes(own, weights)),
    ]
    return " and ".join(problems)


def _is_dict(weights: Mapping[str, Any], part: str) -> bool:
    return isinstance(weights.get(part), dict)


def _other_shapes(expected: Weights, weights: Weights) -> list[str]:
    return [
        f"{name} ({tuple(weights[name].shape)}, needs {tuple(expected[name].shape)})"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]


def _listed(verb: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return [f"{verb} {', '.join(names[:_SHOWN_NAMES])}{more}"]
