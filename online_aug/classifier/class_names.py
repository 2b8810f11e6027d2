"""The names of classes: those that weights were trained for, kept in their file, and loose ones.

Labels are places in the list of class names, so another list makes every answer a wrong one.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from online_aug.errors import UserError

MODEL_FILE, BEST_FILE = "model.safetensors", "best.safetensors"
"""The weights in a run directory: after the last epoch, and after that chosen by validation."""
FIELD = "class_names"
"""Entry of the metadata of a safetensors file."""


def class_metadata(names: Sequence[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file of weights for these classes.

    It is one entry: safetensors writes several in an order that changes from process to process.
    """
    return {FIELD: json.dumps(list(names))}


def class_names_in(path: Path) -> list[str] | None:
    """Return the classes that a file of weights was trained for; None if it does not say."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {}).get(FIELD, "null"))
    except (OSError, ValueError, SafetensorError):  # reading the weights says what is wrong
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list and names else None


def check_class_names(path: Path, key: str, names: Sequence[str]) -> None:
    """Raise if a file of weights says that it knows other classes, or in another order.

    Raises:
        UserError: If so; names the first that differs.
    """
    known = class_names_in(path)
    if known is not None and known != list(names):
        raise UserError(
            f"{key} must know the classes of data.source, {path} does not: "
            f"{difference(known, names)}; name the classes as they were, or train again"
        )


def difference(then: Sequence[str], now: Sequence[str]) -> str:
    """Say in a few words how two lists of class names differ.

    Example:
        >>> difference(["cat", "dog"], ["dog", "tom"])
        "label 0 was 'cat' and is 'dog' now"
        >>> difference(["cat", "dog"], ["cat"])
        'there were 2 classes and are 1 now'
    """
    for label, (before, after) in enumerate(zip(then, now, strict=False)):
        if before != after:
            return f"label {label} was {before!r} and is {after!r} now"
    return f"there were {len(then)} classes and are {len(now)} now"


def labels_by_loose_name(class_names: Sequence[str]) -> dict[str, int]:
    """Return the labels of classes by loosely written names that no other class has.

    Example:
        >>> labels_by_loose_name(["Blue_jay", "crow", "Crow?"])
        {'blue jay': 0}
    """
    names = [loose(name) for name in class_names]
    uses = Counter(names)
    return {name: label for label, name in enumerate(names) if uses[name] == 1}


def loose(name: str) -> str:
    """Write a class name without what programs change about it.

    Folders have underscores, capitals get lost, and some lists doubt a name by a question mark.
    """
    return name.replace("_", " ").replace("/", " ").strip().rstrip("?").strip().casefold()
