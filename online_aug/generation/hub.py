"""Models that a name of the hub stands for, and what is said where they cannot be had."""

import re
from collections.abc import Callable
from pathlib import Path

from online_aug.errors import UserError, one_line

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def fetch(key: str, wanted: str, name: str, download: Callable[[], str]) -> Path:
    """The directory into which a model is downloaded, once.

    Args:
        key: Of the configuration, which names the model.
        wanted: What else it may name.
        name: What it names.
        download: Gives the directory.

    Raises:
        UserError: If that is no name of the hub, or not to be had there.
    """
    rule = f"{key} must be {wanted}, or a hub name that can be reached, got {name!r}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{rule}, which is no directory here")
    try:
        return Path(download())
    except Exception as error:  # whatever its network library of the day raises
        raise UserError(
            f"{rule} ({_root(error)}): where there is a network, hf download {name} --local-dir "
            "DIR fetches it; then give that directory"
        ) from error


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    words = one_line(error) if isinstance(error, Exception) else repr(error)
    return words.partition(" (Request ID")[0]
