"""From shards by split to image sets: indexed, with classes and checked labels."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from online_aug.data.folders import refuse_out_of_range, refuse_unknown_classes
from online_aug.data.settings import DataConfig
from online_aug.data.shards.class_list import checked, in_words, read_class_names
from online_aug.data.shards.content import ShardFile, shown
from online_aug.data.shards.index import ShardIndex, left_out_of
from online_aug.data.shards.index_file import Known
from online_aug.data.shards.places import Shards, find_shards
from online_aug.data.shards.shard_set import ShardSet
from online_aug.errors import UserError

_log = logging.getLogger(__name__)


def shard_splits(data: DataConfig, cache: Path | None) -> dict[str, ShardSet] | None:
    """Open the splits of a source that names shards; None if it names something else.

    Shards are read once; what is in them is kept in an index beside them.

    Args:
        data: Says what is loaded.
        cache: Directory of the cache beside which the index is kept if the folder of the shards
            cannot be written.

    Raises:
        UserError: If a shard cannot be used, or its labels do not fit the classes.
    """
    shards = find_shards(data)
    if shards is None:
        unused = [key for key in ("image_key", "label_key", "class_names") if getattr(data, key)]
        if unused:
            raise UserError(
                f"data.{unused[0]} must be null unless data.source names shards, got "
                f"{getattr(data, unused[0])} for {data.source}"
            )
        return None
    return splits_of(shards, data, cache)


def splits_of(shards: Shards, data: DataConfig, cache: Path | None) -> dict[str, ShardSet]:
    """Open shards by split.

    Raises:
        UserError: As `shard_splits`.
    """
    files = [file for members in shards.splits.values() for file in members]
    index = ShardIndex(shards.folder, files, cache)
    known = index.shards()
    _check_samples(shards, known)
    parts = _parts(shards.splits, known)
    names = _class_names(shards, data, parts)
    sets, at = {}, 0
    for split, members in parts.items():
        end = at + sum(len(each.content.images) for each in members)
        if at == end:
            _refuse_withheld(shards, split)
            continue
        sets[split] = ShardSet(
            folder=shards.folder,
            shards=tuple(members),
            images=index.images[at:end],
            class_names=names,
            labels=_labels(members, names, f"{shown(shards.folder)} ({split})"),
            index=index,
        )
        at = end
    for reason, count in left_out_of(known).items():
        _log.warning("%d samples of %s are left out: %s", count, shown(shards.folder), reason)
    return sets


def _refuse_withheld(shards: Shards, split: str) -> None:
    if split == "train":
        raise UserError(
            f"training images of {shown(shards.folder)} must have labels, all are withheld"
        )
    _log.warning("the labels of %s (%s) are withheld: split not used", shown(shards.folder), split)


def _parts(
    splits: Mapping[str, Sequence[ShardFile]], known: Sequence[Known]
) -> dict[str, Sequence[Known]]:
    parts, at = {}, 0
    for split, members in splits.items():
        parts[split] = known[at : at + len(members)]
        at += len(members)
    return parts


def _check_samples(shards: Shards, known: Sequence[Known]) -> None:
    for each in known:
        wanted = shards.samples.get(each.file.name, each.content.samples)
        if wanted != each.content.samples:
            raise UserError(
                f"{shown(shards.folder / each.file.name)} must hold the {wanted} samples that its "
                f"info file says, got {each.content.samples}: copy it again, or mend the file"
            )


def _class_names(
    shards: Shards, data: DataConfig, parts: Mapping[str, Sequence[Known]]
) -> tuple[str, ...]:
    everything = [each for members in parts.values() for each in members]
    words = [each.content.words for each in everything if each.content.words is not None]
    if words and len(words) < len(everything):
        raise UserError(f"labels of {shown(shards.folder)} must be all words or all numbers")
    if data.class_names is not None:
        return read_class_names(data.class_names)
    if words:
        train = [each.content.words or () for each in parts["train"]]
        return checked(sorted({word for some in train for word in some}), shown(shards.folder))
    said = {each.content.class_names for each in everything}
    if len(said) > 1:
        raise UserError(
            f"shards of {shown(shards.folder)} must name the same classes, got {len(said)} "
            "different lists: name them by data.class_names, or read the shards apart"
        )
    (names,) = said
    if names is not None:
        return checked(names, shown(shards.folder))
    if shards.class_names is not None:
        return checked(in_words(shards.class_names), shown(shards.folder))
    labels = np.concatenate([each.content.images["label"] for each in parts["train"]])
    return tuple(map(str, range(int(labels.max(initial=-1)) + 1)))


def _labels(members: Sequence[Known], names: tuple[str, ...], place: str) -> Int[np.ndarray, " n"]:
    labels = np.concatenate([each.content.images["label"] for each in members]).astype(np.int64)
    if members[0].content.words is not None:
        return _numbered(members, names, place)
    wrong = labels >= len(names)
    if wrong.any():
        refuse_out_of_range(int(labels[wrong][0]), range(len(names)), place)
    return labels


def _numbered(
    members: Sequence[Known], names: tuple[str, ...], place: str
) -> Int[np.ndarray, " n"]:
    """Return the labels of shards that have words, each shard with its own list of them."""
    number = {name: label for label, name in enumerate(names)}
    parts = []
    for each in members:
        words = each.content.words or ()
        refuse_unknown_classes([w for w in words if w not in number], "any", place)
        parts.append(np.array([number[w] for w in words])[each.content.images["label"]])
    return np.concatenate(parts).astype(np.int64)
