"""Names for all that decides a saliency map but the image."""

import hashlib
from pathlib import Path

from torch import nn


def spectral_version(side: int) -> str:
    """The version of maps made without a teacher, of images of this side."""
    return f"spectral_residual-{side}"


def file_version(weights: Path, name: str, side: int) -> str:
    """The version of maps by a model of this timm name with the weights in a file.

    Raises:
        OSError: If the file cannot be read.
    """
    return f"grad_cam-{name}-{side}-{file_digest(weights)}"


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def weights_version(classifier: nn.Module, name: str, side: int) -> str:
    """The version of maps by a model of this timm name as it is now."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(classifier.state_dict().items()):
        digest.update(key.encode() + b"\0")
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return f"grad_cam-{name}-{side}-{digest.hexdigest()}"
