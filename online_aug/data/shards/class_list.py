"""Names of the classes of shards: from a file, or from timm's lists of ImageNet."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from online_aug.documents import DocumentError, parse_json, read_text
from online_aug.errors import UserError, escaped

_IMAGENET = re.compile(r"imagenet-?\d+k\S*", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")


def read_class_names(source: str) -> tuple[str, ...]:
    """Read the names of classes in the order of their labels.

    Args:
        source: A file with a name on each line, or a JSON list; or a name of timm's for a list of
            ImageNet's classes, such as `imagenet-22k`. WordNet's numbers become words.

    Raises:
        UserError: If it cannot be read, or two classes have the same name.
    """
    path = Path(source).expanduser()
    if not path.exists() and _IMAGENET.fullmatch(source):
        return in_words(_synsets(source))
    try:
        text = read_text(path)
        listed = parse_json(text) if text.lstrip().startswith("[") else text.splitlines()
    except DocumentError as error:
        raise UserError(
            "data.class_names must be a file with the name of a class on each line, a JSON list, "
            f"or a list of timm's such as imagenet-22k, cannot use {source}: {error}"
        ) from None
    if not all(isinstance(name, str) and name.strip() for name in listed):
        raise UserError(f"every class must have a name in {source}, one has none")
    return checked(in_words([name.strip() for name in listed]), source)


def in_words(names: Sequence[str]) -> tuple[str, ...]:
    """Return names in words if all are WordNet's numbers; a word that two share keeps its number.

    Example:
        >>> in_words(["n02012849", "n03126707", "n01440764"])
        ('crane (n02012849)', 'crane (n03126707)', 'tench')
    """
    if not names or not all(_SYNSET.fullmatch(name) for name in names):
        return tuple(names)
    from timm.data.imagenet_info import ImageNetInfo  # timm is slow to import

    known = ImageNetInfo("imagenet-21k-goog").label_descriptions(as_dict=True)
    words = [known.get(name, name).split(",")[0] for name in names]
    uses = Counter(words)
    return tuple(
        word if uses[word] == 1 else f"{word} ({name})"
        for word, name in zip(words, names, strict=True)
    )


def checked(names: Sequence[str], source: object) -> tuple[str, ...]:
    """Return names that any terminal can show, all different.

    Raises:
        UserError: If two are the same.
    """
    shown = tuple(map(escaped, names))
    twice = [name for name, count in Counter(shown).items() if count > 1]
    if twice:
        raise UserError(f"names of classes must differ, {twice[0]!r} stands twice in {source}")
    return shown


def _synsets(name: str) -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo  # timm is slow to import

    try:
        return list(ImageNetInfo(name).label_names())
    except AssertionError:
        raise UserError(
            f"data.class_names must be a file or a list of timm's such as imagenet-1k, "
            f"imagenet-12k or imagenet-22k, got {name}"
        ) from None
