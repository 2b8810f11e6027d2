"""Refusals of labels and classes that do not fit, in one line each."""

from collections.abc import Collection, Sequence
from typing import Any

from online_aug.errors import UserError


def refuse_unknown_classes(unknown: Sequence[str], split: str, place: object) -> None:
    """Raise a `UserError` if a split has classes that the training split lacks."""
    if unknown:
        names = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"every class of the {split} split must be in train, {names} "
            f"of {place} {'is' if len(unknown) == 1 else 'are'} not"
        )


def refuse_out_of_range(label: object, known: Collection[Any], place: object) -> None:
    """Raise a `UserError` if a label is none of the numbers for which there is a class."""
    if label not in known:
        raise UserError(
            f"labels of {place} must be whole numbers from {min(known)} to {max(known)}, "
            f"one for each of its {len(known)} classes, got {label!r}"
        )


def no_single_class(label: object, source: str) -> UserError:
    """The error for a label that is no class: none at all, a list, a fraction."""
    return UserError(
        f"data.source must have one class an image, got {source} with a label {label!r}"
    )
