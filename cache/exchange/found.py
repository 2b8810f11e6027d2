"""What the readers of foreign folders share: where they look, and how they name what has no key."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cache.errors import CacheError
from cache.exchange.images import Description
from cache.exchange.names import ClassNames, read_class_names
from cache.key import Scalar, content_digest
from cache.record import Record

Found: TypeAlias = tuple[str, Callable[[], Record]]
"""The name of an image for messages, and what reads it; raises CacheError if it cannot be."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder to import from."""

    root: Path
    classes: ClassNames | None = None
    """Classes in the order of their labels; None takes the folders' names in order."""
    method: str | None = None
    """Method to name in requests that do not have one."""

    def class_names(self, folder: Path) -> ClassNames:
        """The classes of images that lie in class folders under `folder`.

        Raises:
            CacheError: If there are no classes.
        """
        if self.classes is not None:
            return self.classes
        try:
            return read_class_names(folder)
        except CacheError as error:
            raise CacheError(f"source must hold class folders, got none in {folder}") from error


def refuse(reason: str) -> Record:
    """No image, for that reason.

    Raises:
        CacheError: Always.
    """
    raise CacheError(reason)


def foreign(method: str, content: bytes, fields: Mapping[str, Scalar]) -> Description:
    """Describe an image that another program made: what is known of it and its file's digest.

    The digest stands for all that is not known, so that the same file is always the same record
    and no image of ours can have its key.
    """
    request = {
        "method": method,
        "origin": "import",
        "image_digest": content_digest(content),
        **fields,
    }
    return Description(request=request, created=time.time())
