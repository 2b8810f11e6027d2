"""The output of DiffuseMix's script: `generated/CLASS/FILE_generated_PROMPT_0.jpg`.

Only `generated/` is taken. The script's other folders hold what is mixed from it with the original
and a fractal, which is done anew at every use here.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cache.errors import CacheError
from cache.exchange.files import read_inside, walk_images
from cache.exchange.found import Found, Source, foreign
from cache.exchange.images import from_file
from cache.exchange.names import ClassNames
from cache.record import Record

DATA = "generated"
_PATH = re.compile(
    r"(?P<folder>[^/]+)/(?P<file>.+)_generated_(?P<prompt>.*)_(?P<number>\d{1,18})\.\w+"
)


def read(source: Source) -> Iterator[Found]:
    """The generated images; their classes are the folders, which are source and target at once."""
    data = source.root / DATA
    classes = source.class_names(data)
    for name in walk_images(data):
        yield name, partial(_load, source, classes, name)


def is_one(root: Path) -> bool:
    """Whether a folder looks like the script's output."""
    return (root / DATA).is_dir()


def _load(source: Source, classes: ClassNames, name: str) -> Record:
    match = _PATH.fullmatch(name)
    if match is None:
        raise CacheError("name must be CLASS/FILE_generated_PROMPT_NUMBER.jpg")
    content = read_inside(source.root / DATA, name)
    label = classes.label(match["folder"])
    fields = {
        "source_class": match["folder"],
        "source_label": label,
        "source_file": match["file"],
        "target_class": match["folder"],
        "target_label": label,
        "prompt": match["prompt"],
        "variant": int(match["number"]),
    }
    return from_file(content, foreign(source.method or "diffusemix", content, fields))
