"""From `data.source` to three splits: found, checked, cut and ready to load."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from online_aug.config_data import DataConfig
from online_aug.dataloader.embedded import EMBEDDED_SETS, write_embedded
from online_aug.dataloader.folders import folder_splits
from online_aug.dataloader.image_sets import FolderSet, ImageSet, Splits, Subset
from online_aug.dataloader.images import BadImageError, check_header, read_image
from online_aug.dataloader.progress import Report, terminal_progress
from online_aug.dataloader.published import PUBLISHED, published_splits
from online_aug.dataloader.splits import few_shot, long_tail, stratified_split
from online_aug.dataloader.timm_sets import TimmSet, is_timm_name, timm_splits
from online_aug.errors import UserError
from online_aug.seeding import numpy_rng

__all__ = [
    "FolderSet",
    "ImageSet",
    "Splits",
    "Subset",
    "TimmSet",
    "check_images",
    "load_splits",
]

CHECK_THREADS = 8


def load_splits(data: DataConfig) -> Splits:
    """The training, validation and test images that a configuration asks for.

    Splits that the source lacks are cut from its training split, stratified and seeded by
    `data.seed`. The long-tail cut comes first, then the few-shot cut; both touch training only. A
    name of an embedded or a published set means that set: write `./digits` for such a folder.

    Raises:
        UserError: If the source cannot be found or used, or the cuts cannot be made.
    """
    found = _open(data)
    skipped: list[str] = []
    with terminal_progress("checking images") as report:
        for split, images in found.items():
            found[split], bad = check_images(images, data.on_bad_image, report)
            skipped += bad
    _check_classes(found)
    train, val, test = _three_splits(found, data)
    return Splits(train=_cut(train, data), val=val, test=test, skipped=tuple(skipped))


def check_images(
    images: ImageSet, on_bad_image: Literal["error", "skip"], progress: Report | None = None
) -> tuple[ImageSet, tuple[str, ...]]:
    """The set without the files that cannot be read, and the names of those files.

    With `error` only headers are read, so that large sets start fast: a file broken further in
    fails in `load`, with its name. With `skip` each file is read to its end: what is left out now
    need not be dealt with by all who read images later. Sets that are not files are returned as
    they are.

    Raises:
        BadImageError: If `on_bad_image` is `error` and there is such a file.
    """
    if not isinstance(images, FolderSet):
        return images, ()
    reasons: dict[int, str] = {}
    read = read_image if on_bad_image == "skip" else check_header
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        paths = map(images.path, range(len(images)))
        for index, reason in enumerate(pool.map(partial(_problem, read), paths)):
            if reason is not None:
                reasons[index] = reason
            if progress:
                progress(index + 1, len(images))
    if not reasons:
        return images, ()
    if on_bad_image == "error":
        others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        way_out = "mend or remove it, or set data.on_bad_image=skip"
        raise BadImageError(f"{next(iter(reasons.values()))}{others}; {way_out}")
    good = np.setdiff1d(np.arange(len(images)), list(reasons))
    return Subset(images, good), tuple(str(images.path(index)) for index in reasons)


def _open(data: DataConfig) -> dict[str, ImageSet]:
    if data.source in EMBEDDED_SETS:
        return dict(folder_splits(write_embedded(data.source, data.root)))
    if data.source in PUBLISHED:
        return dict(published_splits(data.source, data.root))
    folder = Path(data.source).expanduser()
    if folder.is_dir():
        return dict(folder_splits(folder))
    if is_timm_name(data.source):
        return timm_splits(data.source, data.root)
    names = ", ".join((*EMBEDDED_SETS, *PUBLISHED))
    raise UserError(
        f"data.source must be {names}, an image folder that exists, or a timm name such as "
        f"torch/cifar10 or hfds/<name>, got {data.source}"
    )


def _problem(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except BadImageError as error:
        return str(error)
    return None


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
    missing = {split: share for split, share in wanted.items() if split not in found}
    rest = 1 - sum(missing.values())
    whole = found["train"]
    if not missing:
        return whole, found["val"], found["test"]
    _require_sizes(
        whole, len(missing) + 1, f"to cut {' and '.join(missing)} from it; add images or folders"
    )
    parts = stratified_split(whole.labels, [rest, *missing.values()], numpy_rng("split", data.seed))
    cut: dict[str, ImageSet] = {
        split: Subset(whole, part) for split, part in zip(["train", *missing], parts, strict=True)
    }
    have = {**found, **cut}
    return have["train"], have["val"], have["test"]


def _cut(train: ImageSet, data: DataConfig) -> ImageSet:
    if data.imbalance_factor is not None:
        rng = numpy_rng("long-tail", data.seed)
        train = Subset(train, long_tail(train.labels, data.imbalance_factor, rng))
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
