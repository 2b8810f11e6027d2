"""From `data.source` to shards by split: in a folder, by a pattern, or by a name of timm."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from online_aug.data.folders import SPLIT_FOLDERS, has_images, split_named
from online_aug.data.settings import DataConfig
from online_aug.data.shards.content import ShardFile, shown
from online_aug.data.shards.index import READERS
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError, escaped

WDS, HFDS = "wds", "hfds"
"""Prefixes of timm's names whose shards are read here."""
_TAR = ".tar"
_INFO_FILES = ("_info.json", "info.json")
_DISK_FILE, _DICT_FILE = "state.json", "dataset_dict.json"
"""Files in the folders of `save_to_disk`: of one split, and of several."""
_OTHER_FOLDERS = ("data", "default")
"""Folders of the hub that hold shards or folders of splits."""
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Shards:
    """Shards by split."""

    folder: Path
    splits: Mapping[str, Sequence[ShardFile]]
    """Files relative to the folder, in the order `train`, `val`, `test`."""
    samples: Mapping[str, int] = field(default_factory=dict)
    """Number of samples that each shard should have, by its name, if somebody says so."""
    class_names: Sequence[str] | None = None
    """Names of the classes if they stand beside the shards."""


def find_shards(data: DataConfig) -> Shards | None:
    """Return the shards that `data.source` names, or None if it names something else.

    Raises:
        UserError: If they cannot be used together, or are compressed.
    """
    prefix, _, name = data.source.partition("/")
    if prefix.lower() == WDS and name:
        folder = data.root.expanduser()
        found = _in_folder(folder, data)
        if found is None:
            raise UserError(
                f"data.root must be the folder of the shards of {data.source}, got "
                f"{shown(folder)} without a .tar"
            )
        return found
    if prefix.lower() == HFDS and name:
        places = (data.root.expanduser() / name, Path(name).expanduser())
        return next((f for p in places if p.is_dir() and (f := _in_folder(p, data))), None)
    if Path(data.source).expanduser().is_dir():
        return _in_folder(Path(data.source).expanduser(), data)
    if _is_pattern(data.source):
        return _by_pattern(data)
    return None


def _is_pattern(source: str) -> bool:
    return source.lower().endswith(tuple(READERS)) or _COMPRESSED.search(source) is not None


def _by_pattern(data: DataConfig) -> Shards:
    paths = [Path(each).expanduser() for part in data.source.split("::") for each in braces(part)]
    _refuse_compressed(paths)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"data.source must name shards that exist, {shown(missing[0])} does not"
            + (f", nor do {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    if len(set(paths)) < len(paths):
        raise UserError(f"data.source must name each shard once, got {data.source}")
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [path.absolute().relative_to(folder).as_posix() for path in paths]
    return _by_split(folder, names, data)


def stem_of(source: str) -> str:
    """Return a path without what differs between the shards that a pattern names.

    Example:
        >>> stem_of("shards/pets-train-{0000..0012}.tar"), stem_of("photos")
        ('shards/pets-train', 'photos')
    """
    if not _is_pattern(source):
        return source
    first = Path(source.partition("::")[0].partition("{")[0])
    stem = first.name.removesuffix(first.suffix) if first.suffix in READERS else first.name
    return str(first.with_name(stem.rstrip("-_.")) if stem else first.parent)


def braces(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with `{a,b}` and `{000..123}` stands for, in order.

    Example:
        >>> list(braces("birds-{train,val}-{08..10}.tar"))[1:4]
        ['birds-train-09.tar', 'birds-train-10.tar', 'birds-val-08.tar']
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1], pattern):
        yield from braces(f"{pattern[: match.start()]}{choice}{pattern[match.end() :]}")


def _choices(text: str, pattern: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(text)
    if numbers is None:
        yield from text.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MOST_SHARDS:
        raise UserError(
            f"a range of data.source must go from a smaller to a larger number, got {{{text}}} in "
            f"{pattern}"
        )
    width = len(numbers[1])
    yield from (f"{number:0{width}d}" for number in range(first, last + 1))


def _in_folder(folder: Path, data: DataConfig) -> Shards | None:
    info = _info(folder)
    if info is not None:
        return _by_info(folder, info, data)
    names = list(_listed_on_disk(folder)) or sorted(_names(folder, READERS.keys()))
    if not names:
        packed = sorted(path for path in folder.iterdir() if _COMPRESSED.search(path.name))
        if packed and not has_images(folder):
            _refuse_compressed(packed)
        return None
    if has_images(folder):
        raise UserError(
            f"{shown(folder)} must hold shards or images, got both, such as {escaped(names[0])}: "
            f"move one of them away, or name the shards by data.source={shown(folder)}/NAME.tar"
        )
    return _by_split(folder, names, data)


def _names(folder: Path, endings: Any, depth: int = 2) -> Iterator[str]:
    """Yield the shards in a folder and in its folders of splits, relative to it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file() and entry.name.lower().endswith(tuple(endings)):
                yield entry.name
            elif depth and entry.is_dir() and _may_hold_shards(entry.name):
                for name in _names(folder / entry.name, endings, depth - 1):
                    yield f"{entry.name}/{name}"


def _may_hold_shards(name: str) -> bool:
    return split_named(name) is not None or name.casefold() in _OTHER_FOLDERS


def _listed_on_disk(folder: Path) -> Iterator[str]:
    """Yield the files that `save_to_disk` of `datasets` has written, in their order."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if not (place / _DISK_FILE).is_file() or not any(place.glob("*.arrow")):
            continue
        if place != folder and not (folder / _DICT_FILE).is_file():
            continue
        for row in _read(place / _DISK_FILE).get("_data_files", []):
            yield (place / str(row["filename"])).relative_to(folder).as_posix()


def _info(folder: Path) -> Mapping[str, Any] | None:
    if not folder.is_dir() or next(_names(folder, (_TAR,)), None) is None:
        return None
    for name in _INFO_FILES:
        if (folder / name).is_file() and "splits" in (found := _read(folder / name)):
            return found
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except DocumentError as error:
        raise UserError(f"{shown(path)} must say which shards there are: {error}") from None


def _by_info(folder: Path, info: Mapping[str, Any], data: DataConfig) -> Shards:
    """Return the shards that timm's file of a WebDataset lists, by split."""
    splits: dict[str, list[ShardFile]] = {}
    samples: dict[str, int] = {}
    try:
        for name, row in info["splits"].items():
            split = split_named(name)
            if split is None or split in splits:
                continue
            key = data.label_key or row.get("alt_label") or None
            files = [str(file) for file in row["filenames"]]
            splits[split] = [ShardFile(file, data.image_key, key) for file in files]
            samples |= dict(zip(files, row.get("shard_lengths") or (), strict=False))
        names = info.get("class_names")
        class_names = None if names is None else [str(name) for name in names]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{shown(folder)} must have an info file with filenames for each split, as timm's: "
            f"{type(error).__name__} {escaped(str(error))}"
        ) from None
    listed = [folder / file.name for files in splits.values() for file in files]
    _refuse_compressed(listed)
    missing = [path for path in listed if not path.is_file()]
    if missing:
        raise UserError(
            f"every shard that its info file names must exist, {shown(missing[0])} does not"
            + (f", nor do {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return Shards(folder, _ordered(folder, splits), samples, class_names)


def _by_split(folder: Path, names: Sequence[str], data: DataConfig) -> Shards:
    kinds = {Path(name).suffix.lower() for name in names}
    if len(kinds) > 1:
        raise UserError(
            f"shards of {shown(folder)} must be of one kind, got {' and '.join(sorted(kinds))}: "
            "name those of one kind by a pattern"
        )
    splits: dict[str, list[ShardFile]] = {}
    said = {name: _split_in(name) for name in names}
    silent = [name for name, split in said.items() if split is None]
    if silent and len(silent) < len(said):
        raise UserError(
            f"all shards of {shown(folder)} or none must have the name of a split in theirs, such "
            f"as train, {escaped(silent[0])} has none: name the shards by a pattern"
        )
    for name, split in said.items():
        file = ShardFile(name, data.image_key, data.label_key)
        splits.setdefault(split or "train", []).append(file)
    return Shards(folder, _ordered(folder, splits))


def _split_in(name: str) -> str | None:
    *folders, file = name.split("/")
    words = [*folders, *re.split(r"[-_.]", file)]
    return next((split for word in words if (split := split_named(word))), None)


def _ordered(folder: Path, splits: Mapping[str, list[ShardFile]]) -> dict[str, Sequence[ShardFile]]:
    if "train" not in splits:
        raise UserError(
            f"shards of {shown(folder)} must have a split train, got "
            f"{', '.join(splits) or 'no split that is known'}"
        )
    return {split: splits[split] for split in SPLIT_FOLDERS if split in splits}


def _refuse_compressed(paths: Sequence[Path]) -> None:
    packed = [path for path in paths if _COMPRESSED.search(path.name)]
    if packed:
        raise UserError(
            "shards must be plain .tar files, which can be read at any place, got "
            f"{shown(packed[0])}: unpack it to a .tar, by gunzip or unzstd"
        )
