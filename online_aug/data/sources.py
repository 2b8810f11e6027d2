"""From `data.source` to three splits: found, checked, divided and cut by index."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from cache import content_digest
from online_aug.console import Report, terminal_progress
from online_aug.data.cuts import few_shot, long_tail, stratified_split
from online_aug.data.embedded import EMBEDDED_SETS, embedded_splits
from online_aug.data.folders import (
    doubtful_folders,
    folder_splits,
    said_of_kinds,
    split_named,
)
from online_aug.data.image_sets import FolderSet, ImageSet, Splits, Subset
from online_aug.data.images import (
    WAY_OUT,
    BadImageError,
    check_content,
    check_header,
    decode_image,
    read_image,
)
from online_aug.data.map_style.copied import CopiedSet, is_copy, open_copy
from online_aug.data.published.sets import PUBLISHED, published_splits
from online_aug.data.settings import DataConfig
from online_aug.data.shards.places import stem_of
from online_aug.data.shards.shard_set import ShardSet
from online_aug.data.shards.splits import shard_splits
from online_aug.data.timm_sets import is_timm_name, timm_splits
from online_aug.errors import UserError, escaped
from online_aug.file_digests.index import in_parts
from online_aug.file_digests.known import HEADERS, PIXELS, KnownFiles
from online_aug.seeding import numpy_rng

_LEVELS = {"error": HEADERS, "skip": PIXELS}
"""Level by which a check is remembered, by what is done about a bad image."""
_CHECKS = {HEADERS: (check_header, check_content), PIXELS: (read_image, decode_image)}
"""Checks of a file and of an image in a shard, by their level."""


def load_splits(data: DataConfig, cache: Path | None = None) -> Splits:
    """Load the training, validation and test images of a configuration.

    Splits that the source lacks are divided from its training split, stratified and seeded by
    `data.seed`; with `data.val_fraction` 0 the validation split is empty instead. Then the training
    split is cut, first to a long tail, then to few shots. The name of an embedded or published set
    means that set; `./digits` is a folder of the same name.

    Args:
        data: Says what is loaded.
        cache: Directory of the cache beside which checks and digests of files are kept, so that
            only new and changed files are read; None reads all.

    Raises:
        UserError: If the source cannot be found or used, or is too small for the cuts.
    """
    found = _open(data, cache)
    kinds = _kinds_left_out(found)
    skipped: list[str] = []
    with terminal_progress("checking images") as report:
        for split, images in found.items():
            if cache is not None and isinstance(images, FolderSet):
                images = replace(images, known=KnownFiles(cache, images.root, images.names))
                if split == "train" and _keeps_all(data) and images.known is not None:
                    images.known.read(np.arange(len(images)), report)  # errors come with the check
            found[split], bad = check_images(images, data.on_bad_image, report)
            skipped += bad
    _check_classes(found)
    train, val, test = _three_splits(found, data)
    return Splits(
        train=_cut(train, data),
        val=val,
        test=test,
        skipped=tuple(skipped),
        doubts=(*_doubts(data), *kinds),
    )


def data_set_name(source: str, class_names: Sequence[str]) -> str:
    """Return the name by which a cache knows a data set: its source's, and a digest of its classes.

    Two folders of one name with other classes are two data sets.

    Example:
        >>> data_set_name("photos/birds/train", ["crow", "jay"])
        'birds-de022d'
    """
    known = source in EMBEDDED_SETS or source in PUBLISHED or is_timm_name(source)
    name = source
    if not known:
        folder = Path(stem_of(source)).expanduser().resolve()
        name = folder.parent.name if split_named(folder.name) else folder.name
    listed = json.dumps(list(class_names)).encode()
    return f"{escaped(name)}-{content_digest(listed)[:6]}"


def _keeps_all(data: DataConfig) -> bool:
    """Whether the digests of about all images of the training split will be asked for."""
    return data.examples_per_class is None and data.imbalance_factor is None


def _kinds_left_out(found: Mapping[str, ImageSet]) -> list[str]:
    sets = [images for images in found.values() if isinstance(images, FolderSet)]
    said = said_of_kinds(sum((Counter(images.passed_over) for images in sets), Counter()))
    return [said] if said else []


def check_images(
    images: ImageSet, on_bad_image: Literal["error", "skip"], progress: Report | None = None
) -> tuple[ImageSet, tuple[str, ...]]:
    """Leave out the files that cannot be read; return the rest of the set and their names.

    With `error` only headers are read, so that large sets start fast; a file damaged further on
    fails in `load`, with its name. With `skip` every file is decoded, so that no later reader meets
    a bad one. A set whose images are neither files nor in shards is returned as it is.

    Raises:
        BadImageError: If `on_bad_image` is `error` and a file cannot be read.
    """
    if not isinstance(images, FolderSet | ShardSet):
        return images, ()
    reasons = _problems(images, _LEVELS[on_bad_image], progress)
    if not reasons:
        return images, ()
    if on_bad_image == "error":
        others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise BadImageError(f"{next(iter(reasons.values()))}{others}; {WAY_OUT}")
    good = np.setdiff1d(np.arange(len(images)), list(reasons))
    return Subset(images, good), tuple(escaped(_title(images, index)) for index in reasons)


def _open(data: DataConfig, cache: Path | None) -> dict[str, ImageSet]:
    if data.train_split is not None and data.source not in PUBLISHED:
        raise UserError(
            f"data.train_split must be null unless data.source is a published set, got "
            f"{data.train_split} for {data.source}, whose folders or files say what is trained on"
        )
    if data.source in EMBEDDED_SETS:
        return dict(embedded_splits(data.source, data.root))
    if data.source in PUBLISHED:
        chosen = (data.train_split, data.seed)
        return dict(published_splits(data.source, data.root, *chosen))
    folder = Path(data.source).expanduser()
    if is_copy(folder):
        return {"train": open_copy(folder)}
    shards = shard_splits(data, cache)
    if shards is not None:
        return dict(shards)
    if folder.is_dir():
        return dict(folder_splits(folder))
    if is_timm_name(data.source):
        return timm_splits(data, cache)
    names = ", ".join((*EMBEDDED_SETS, *PUBLISHED))
    raise UserError(
        f"data.source must be {names}, an image folder that exists, a folder of .tar or .parquet "
        "shards or a pattern for them, or a timm name such as torch/cifar10 or hfds/<name>, got "
        f"{data.source}"
    )


def _doubts(data: DataConfig) -> tuple[str, ...]:
    if data.source in EMBEDDED_SETS or data.source in PUBLISHED:
        return ()
    folder = Path(data.source).expanduser()
    return doubtful_folders(folder) if folder.is_dir() else ()


def _problems(images: FolderSet | ShardSet, level: int, progress: Report | None) -> dict[int, str]:
    """Return what is wrong with the images that are not known to have passed this check."""
    known = images if isinstance(images, ShardSet) else images.known
    todo = np.arange(len(images)) if known is None else known.unchecked(level)
    reasons: dict[int, str] = {}

    def look(part: Int[np.ndarray, " m"]) -> list[str | None]:
        return [_problem(images, index, level) for index in part.tolist()]

    done = 0
    for part, found in in_parts(look, todo):
        pairs = zip(part.tolist(), found, strict=True)
        reasons |= {index: why for index, why in pairs if why is not None}
        done += len(part)
        if progress:
            progress(done, len(todo))
    if known is not None:
        known.note_checked(np.setdiff1d(todo, np.array(list(reasons), np.int64)), level)
        known.save()
    return reasons


def _problem(images: FolderSet | ShardSet, index: int, level: int) -> str | None:
    of_file, of_content = _CHECKS[level]
    try:
        if isinstance(images, FolderSet):
            of_file(images.path(index))
        else:
            of_content(images.content(index), images.title(index))
    except BadImageError as error:
        return str(error)
    return None


def _title(images: FolderSet | ShardSet, index: int) -> str:
    return images.title(index) if isinstance(images, ShardSet) else str(images.path(index))


def _check_classes(found: Mapping[str, ImageSet]) -> None:
    names = found["train"].class_names
    if len(names) < 2:
        raise UserError(f"data.source must hold at least two classes, got only {names[0]!r}")
    for name, size in zip(names, _class_sizes(found["train"]), strict=True):
        if size == 0:
            raise UserError(f"every class must have readable training images, {name!r} has none")
    for split, images in found.items():
        if not len(images):
            raise UserError(f"the {split} split must have readable images, got none")


def _three_splits(
    found: Mapping[str, ImageSet], data: DataConfig
) -> tuple[ImageSet, ImageSet, ImageSet]:
    wanted = {"val": data.val_fraction, "test": data.test_fraction}
    missing = {split: share for split, share in wanted.items() if split not in found and share}
    rest = 1 - sum(missing.values())
    whole = found["train"]
    nothing = Subset(whole, np.zeros(0, np.int64))
    if isinstance(whole, CopiedSet):  # the caller has set apart what is to be tested by
        return whole, nothing, nothing
    empty: dict[str, ImageSet] = {"val": nothing}
    if not missing:
        return whole, {**empty, **found}["val"], found["test"]
    _require_sizes(
        whole, len(missing) + 1, f"to cut {' and '.join(missing)} from it; add images or folders"
    )
    parts = stratified_split(whole.labels, [rest, *missing.values()], numpy_rng("split", data.seed))
    cut: dict[str, ImageSet] = {
        split: Subset(whole, part) for split, part in zip(["train", *missing], parts, strict=True)
    }
    have = {**empty, **found, **cut}
    return have["train"], have["val"], have["test"]


def _cut(train: ImageSet, data: DataConfig) -> ImageSet:
    if data.imbalance_factor is not None:
        rng = numpy_rng("long-tail", data.seed)
        so = data.imbalance_cut == "published"
        train = Subset(train, long_tail(train.labels, data.imbalance_factor, rng, is_published=so))
    if data.examples_per_class is not None:
        _require_sizes(train, data.examples_per_class, "for data.examples_per_class")
        rng = numpy_rng("few-shot", data.seed)
        train = Subset(train, few_shot(train.labels, data.examples_per_class, rng))
    return train


def _require_sizes(images: ImageSet, least: int, purpose: str) -> None:
    for name, size in zip(images.class_names, _class_sizes(images), strict=True):
        if size < least:
            raise UserError(
                f"class {name!r} must have at least {least} training images {purpose}, got {size}"
            )


def _class_sizes(images: ImageSet) -> list[int]:
    sizes: list[int] = np.bincount(images.labels, minlength=len(images.class_names)).tolist()
    return sizes
