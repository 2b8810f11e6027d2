"""Tiny shards that tests write: tars of WebDataset, Parquet and Arrow files of `datasets`."""

import io
import json
import os
import tarfile

import numpy as np
import PIL.Image

LONG_AGO_S = 1_000_000_000


def noise(count, seed, side=6):
    """Return images that differ from one another."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (side, side - 1, 3), dtype=np.uint8) for _ in range(count)]


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def age(path):
    """Let a file have been written long ago, so that its index is believed."""
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))


def write_tar(path, members, **options):
    """Write a tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    age(path)


def members_of(images, labels):
    """Return the members of images with `.cls` labels."""
    found = []
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        found.append((f"{number:04d}.png", encoded(pixels)))
        found.append((f"{number:04d}.cls", str(label).encode()))
    return found


def write_wds(root, splits, shards=1, **info):
    """Write shards and timm's `_info.json`; return the images by split."""
    rows, made = {}, {}
    for seed, (split, labels) in enumerate(splits.items()):
        made[split] = noise(len(labels), seed)
        names = [f"pets-{split}-{number}.tar" for number in range(shards)]
        for number, name in enumerate(names):
            part = slice(number, None, shards)
            write_tar(root / name, members_of(made[split][part], labels[part]))
        rows[split] = {
            "name": split,
            "num_samples": len(labels),
            "filenames": names,
            "shard_lengths": [len(labels[number::shards]) for number in range(shards)],
        }
    (root / "_info.json").write_text(json.dumps({"splits": rows, **info}))
    return made


def write_parquet(path, images, labels, names=("cat", "dog"), **options):
    """Write a file as `datasets` does: a struct of bytes and path, and a class label."""
    import pyarrow as arrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table_of(arrow, images, labels, names), path, **options)
    age(path)


def table_of(arrow, images, labels, names):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    if names is None:
        del features["label"]
    rows = [{"bytes": content, "path": None} for content in images]
    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    table = arrow.table({"image": arrow.array(rows, kind), "label": labels})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata)


def pairs_of(images):
    """Return pixels and label of every image of a set."""
    return [(images.load(i).tobytes(), int(images.labels[i])) for i in range(len(images))]
