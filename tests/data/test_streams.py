"""Streams of timm are copied once: real WebDataset shards, and a fake for the rest."""

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.data.timm_sets import write_stream
from online_aug.errors import UserError


def write_shard(root, split, members):
    """Write one tar as WebDataset does: `key.png` and `key.cls`."""
    with tarfile.open(root / f"pets-{split}-0.tar", "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def noise_images(labels, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in labels]


def encoded(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_wds(root, splits):
    """Write shards with the `_info.json` that timm's reader expects; return the images."""
    info, made = {}, {}
    for seed, (split, labels) in enumerate(splits.items()):
        made[split] = noise_images(labels, seed)
        members = []
        for number, (pixels, label) in enumerate(zip(made[split], labels, strict=True)):
            members.append((f"{number:04d}.png", encoded(pixels)))
            members.append((f"{number:04d}.cls", str(label).encode()))
        write_shard(root, split, members)
        info[split] = {
            "name": split,
            "num_samples": len(labels),
            "filenames": [f"pets-{split}-0.tar"],
            "shard_lengths": [len(labels)],
        }
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return made


def open_wds(root):
    return load_splits(DataConfig(source="wds/pets", root=root))


def test_shards_become_splits_with_every_pixel_and_label(tmp_path):
    labels = {"train": [2, 0, 1, 1, 0, 2], "validation": [1, 0], "test": [0, 2, 1]}
    made = write_wds(tmp_path, labels)
    splits = open_wds(tmp_path)
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        found = getattr(splits, ours)
        pairs = {(found.load(i).tobytes(), int(found.labels[i])) for i in range(len(found))}
        expected = zip(made[theirs], labels[theirs], strict=True)
        assert pairs == {(pixels.tobytes(), label) for pixels, label in expected}


def test_a_set_is_copied_once(tmp_path):
    write_wds(tmp_path, {"train": [0, 1, 0, 1], "validation": [0, 1], "test": [0, 1]})
    before = open_wds(tmp_path)
    (tmp_path / "pets-train-0.tar").unlink()
    assert [open_wds(tmp_path).train.digest(i) for i in range(4)] == [
        before.train.digest(i) for i in range(4)
    ]


def test_a_broken_image_is_left_out_and_counted(tmp_path, caplog):
    write_wds(tmp_path, {"train": [0, 1, 0, 1], "validation": [0, 1], "test": [0, 1]})
    members = [("a.png", encoded(noise_images([0], 5)[0])), ("a.cls", b"0")]
    members += [("b.png", b"no image"), ("b.cls", b"1")]
    members += [
        ("c.png", encoded(noise_images([0], 6)[0])),
        ("c.cls", b"1"),
        ("d.png", b""),
        ("d.cls", b"0"),
    ]
    write_shard(tmp_path, "train", members)
    assert len(open_wds(tmp_path).train) == 2
    assert "2 images of wds/pets (train) could not be read" in caplog.text


def test_a_folder_without_shards_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="timm can open, got wds/pets") as caught:
        open_wds(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["tfds/cifar10", "hfids/pets"])
def test_a_missing_package_is_reported_in_one_line(tmp_path, source):
    with pytest.raises(UserError, match=f"timm can open, got {source}") as caught:
        load_splits(DataConfig(source=source, root=tmp_path))
    assert "\n" not in str(caught.value)


class Stream:
    """A stream as timm opens it: iterable, with a length and a reader that may know class names.

    It has everything we use; the real readers need TensorFlow or the hub.
    """

    def __init__(self, items, class_to_idx=None):
        self.items = items
        self.reader = SimpleNamespace(class_to_idx=class_to_idx)

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)


def image():
    return PIL.Image.new("RGB", (3, 3))


def test_classes_keep_the_names_and_order_of_timm(tmp_path):
    names = {"zebra": 0, "../ant": 1}
    folder = write_stream(
        "tfds/x", tmp_path, {"train": Stream([(image(), 0), (image(), 1)], names)}
    )
    assert sorted(p.name for p in (folder / "train").iterdir()) == ["00000 zebra", "00001 ..%2Fant"]


def test_withheld_labels_are_left_out(tmp_path, caplog):
    splits = {"train": Stream([(image(), 0), (image(), -1)]), "test": Stream([(image(), -1)])}
    folder = write_stream("tfds/x", tmp_path, splits)
    assert len(list(folder.rglob("*.png"))) == 1
    assert "tfds/x (test) has no labelled image" in caplog.text


def test_an_image_with_several_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"one class an image, got tfds/x with a label \[0, 1\]"):
        write_stream("tfds/x", tmp_path, {"train": Stream([(image(), [0, 1])])})
    assert not (tmp_path / "tfds_x").exists()


def test_a_label_without_a_class_is_refused_with_the_range(tmp_path):
    stream = Stream([(image(), 0), (image(), 2)], {"ant": 0, "bee": 1})
    with pytest.raises(UserError, match=r"labels of tfds/x \(train\) must be .* 0 to 1, .* got 2"):
        write_stream("tfds/x", tmp_path, {"train": stream})
    assert not (tmp_path / "tfds_x").exists()


def test_a_broken_stream_leaves_nothing(tmp_path):
    def broken():
        yield image(), 0
        raise OSError("connection lost")

    stream = Stream([])
    stream.__class__ = type("Broken", (Stream,), {"__iter__": lambda self: broken()})
    with pytest.raises(UserError, match="data.source tfds/x cannot be read: connection lost"):
        write_stream("tfds/x", tmp_path, {"train": stream})
    assert not (tmp_path / "tfds_x").exists()
