"""timm's data sets that can only be read from front to back, copied once into an image folder.

Planning asks for any image at any time, so a stream needs an index; a copy is one. Pixels are kept
exactly (PNG), the classes' names and order are timm's.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from online_aug.dataloader.class_checks import no_single_class, refuse_out_of_range
from online_aug.dataloader.images import to_rgb
from online_aug.dataloader.progress import Report
from online_aug.dataloader.written import written_once
from online_aug.errors import UserError, one_line

_LOG = logging.getLogger(__name__)
STREAMS = ("hfids", "tfds", "wds")
"""Prefixes of timm names whose sets are streams."""
_FORMAT = 1


def write_stream(source: str, root: Path, splits: Mapping[str, Any]) -> Path:
    """The folder under `root` that holds the images of `splits`, copied unless it is there.

    Args:
        source: Name of the set, such as `wds/pets`.
        root: Where the copy goes (`data.root`).
        splits: timm's iterable data set of each split, by our names.

    Raises:
        UserError: If a label is no class, nothing could be read, or nothing can be written.
    """
    folder = root / source.replace("/", "_").lower()
    return written_once(folder, f"{source} {_FORMAT}\n", partial(_copy, source, splits))


def _copy(source: str, splits: Mapping[str, Any], folder: Path, progress: Report) -> None:
    total, done = sum(map(len, splits.values())), 0
    for split, dataset in splits.items():
        before, known = done, set(_class_words(dataset).values())
        for image, label in _labelled(dataset, source):
            if known:
                refuse_out_of_range(label, known, f"{source} ({split})")
            place = folder / split / _class_folder(dataset, label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(to_rgb(image)).save(place / f"{done:08d}.png", compress_level=1)
            done += 1
            progress(done, total)
        if done == before:
            _LOG.warning("%s (%s) has no labelled image that can be read: not used", source, split)
        elif done - before < len(dataset):
            missing = len(dataset) - done + before
            _LOG.warning("%d images of %s (%s) could not be read", missing, source, split)
    if not (folder / "train").is_dir():
        raise UserError(f"data.source must hold labelled training images, got {source} without any")


def _labelled(dataset: Any, source: str) -> Iterator[tuple[Image.Image, int]]:
    items = iter(dataset)
    while True:
        try:
            image, label = next(items)
        except StopIteration:
            return
        except Exception as error:  # whichever of a dozen decoders and file formats gave up
            raise UserError(f"data.source {source} cannot be read: {one_line(error)}") from error
        try:
            number = int(label)
        except (TypeError, ValueError):
            raise no_single_class(label, source) from None
        if number >= 0:  # -1: withheld
            yield image, number


def _class_folder(dataset: Any, label: int) -> str:
    """A folder name that sorts by number and cannot leave its place."""
    names = sorted(word for word, number in _class_words(dataset).items() if number == label)
    title = quote(names[0], safe=" ()&+,'") if names else ""
    return f"{label:05d} {title}".strip()


def _class_words(dataset: Any) -> dict[str, int]:
    words = getattr(dataset.reader, "class_to_idx", None) or {}
    return {str(word): number for word, number in words.items()}
