"""Classes by label: their names as the data has them, and as folders that lead nowhere else."""

import re
from collections.abc import Sequence
from pathlib import Path

from cache.errors import CacheError

_MAX_BYTES = 100
_MAX_FILE_BYTES = 2**24
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """`name` as the name of one file or folder on any system: no separator, no way up.

    Example:
        >>> safe_name("../../etc/passwd"), safe_name(""), safe_name("Black footed Albatross")
        ('_.._etc_passwd', '_', 'Black footed Albatross')
    """
    safe = _UNSAFE.sub("_", name)
    safe = "".join(letter if letter.isprintable() else "_" for letter in safe)
    safe = safe.encode()[:_MAX_BYTES].decode(errors="ignore").strip(" .")
    return f"_{safe}" if not safe or _RESERVED.fullmatch(safe) else safe


class ClassNames:
    """Names and folders of classes by label; without names, the label itself in four digits."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Take the names in the order of the labels, from 0."""
        self.names = tuple(names)
        self._folders: dict[int, str] = {}
        taken: set[str] = set()
        for label, name in enumerate(self.names):
            folder = safe_name(name)
            while _loose(folder).casefold() in taken:
                folder = f"{folder}-{label}"
            taken.add(_loose(folder).casefold())
            self._folders[label] = folder
        self._labels = {_loose(name): label for label, name in reversed([*enumerate(self.names)])}

    def name(self, label: int) -> str:
        """The class's own name.

        Raises:
            CacheError: If there are names but none for `label`.
        """
        if not self.names:
            return self.folder(label)
        if not 0 <= label < len(self.names):
            raise CacheError(f"classes must name label {label}, got {len(self.names)} names")
        return self.names[label]

    def spoken(self, label: int) -> str:
        """The name for people to read, `class 7` where there is none."""
        return self.names[label] if 0 <= label < len(self.names) else f"class {label}"

    def folder(self, label: int) -> str:
        """The name of its folder: safe, and no other class's.

        Raises:
            CacheError: If there are names but none for `label`.
        """
        if not self.names:
            return safe_name(f"{label:04d}")
        self.name(label)
        return self._folders[label]

    def label(self, name: str) -> int:
        """The label of a class by its name or its folder, spaces and underscores alike.

        Raises:
            CacheError: If no class is called so.
        """
        try:
            return self._labels[_loose(name)]
        except KeyError as error:
            raise CacheError(f"class must be a known one, got {name[:80]!r}") from error


def read_class_names(path: Path) -> ClassNames:
    """The classes of a text file, a name a line in the order of the labels, or of an image folder.

    Of a folder, as torchvision's ImageFolder has them: the names of its folders in order.

    Raises:
        CacheError: If it is neither, or has no name.
    """
    try:
        names = _folder_names(path) if path.is_dir() else _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CacheError(f"classes must be a readable text file or folder, got {path}") from error
    if not names:
        raise CacheError(f"classes must hold a name, got none in {path}")
    return ClassNames(names)


def _folder_names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and not item.is_symlink())


def _lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise CacheError(f"classes must be at most {_MAX_FILE_BYTES} bytes, got more in {path}")
    return content.decode().splitlines()


def _loose(name: str) -> str:
    return name.replace("_", " ").replace("/", " ").strip()
