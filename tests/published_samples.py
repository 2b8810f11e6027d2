"""Published data sets in miniature: the files of their authors with few, small images.

The grey value of an image is twice its label; its width differs from the others of that class.
"""

import csv
import json
import struct

import numpy as np
from PIL import Image
from scipy.io import savemat

SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Scissor_tailed_Flycatcher")
THINGS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN, TEST = 4, 2


def picture(path, label, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8 + number, 3), 2 * label, np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=100)


def write_lines(path, rows, separator=" "):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def shots(classes, train=TRAIN, test=TEST):
    """Yield split, label and number of every image of a small set."""
    for split, count in {"train": train, "test": test}.items():
        for label in range(classes):
            for k in range(count):
                yield split, label, k if split == "train" else train + k


def write_cub(root, train=TRAIN):
    folder = root / "CUB_200_2011"
    tables = {"images": [], "image_class_labels": [], "train_test_split": []}
    # As in the published files, train and test alternate.
    for number, (split, label, k) in enumerate(
        sorted(shots(3, train), key=lambda shot: shot[1:]), 1
    ):
        file = f"{SPECIES[label]}/{k}.jpg"
        picture(folder / "images" / file, label, k)
        tables["images"].append((number, file))
        tables["image_class_labels"].append((number, label + 1))
        tables["train_test_split"].append((number, int(split == "train")))
    for name, rows in tables.items():
        write_lines(folder / f"{name}.txt", rows)
    write_lines(folder / "classes.txt", enumerate(SPECIES, 1))


def write_waterbirds(root):
    """Write albatrosses as waterbirds, every second image on water; grey values are by species."""
    folder = root / "waterbird_complete95_forest2water2"
    rows = []
    for split, count in enumerate((4, 2, 2)):
        for label, name in enumerate(SPECIES):
            for k in range(count):
                is_waterbird, file = int(label < 2), f"{name}/{split}_{k}.jpg"
                picture(folder / file, label, 10 * split + k)
                rows.append((len(rows), file, is_waterbird, split, k % 2, "/o/ocean/1.jpg"))
    header = ("img_id", "img_filename", "y", "split", "place", "place_filename")
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_cub_waterbirds(root, train=TRAIN):
    write_cub(root, train)
    write_waterbirds(root)


def write_aircraft(root, train=TRAIN):
    folder = root / "fgvc-aircraft-2013b" / "data"
    variants = ("707-320", "Boeing 717", "F-16A/B")
    rows = {"trainval": [], "train": [], "val": [], "test": []}
    for split, label, k in shots(3, train):
        picture(folder / "images" / f"{label}{k:06d}.jpg", label, k)
        of_train = ("trainval", "train" if len(rows["train"]) <= len(rows["val"]) else "val")
        for part in ("test",) if split == "test" else of_train:
            rows[part].append((f"{label}{k:06d}", variants[label]))
    for split, found in rows.items():
        write_lines(folder / f"images_variant_{split}.txt", found)
    write_lines(folder / "variants.txt", [(name,) for name in variants])


def write_cars(root):
    folder = root / "stanford_cars"
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], object)
    kinds = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    rows = {"train": [], "test": []}
    for split, label, k in shots(2):
        picture(folder / f"cars_{split}" / f"{label}{k:05d}.jpg", label, k)
        rows[split].append((1, 1, 8, 8, label + 1, f"{label}{k:05d}.jpg"))
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, path in {
        "train": folder / "devkit" / "cars_train_annos.mat",
        "test": folder / "cars_test_annos_withlabels.mat",
    }.items():
        savemat(path, {"annotations": np.array(rows[split], kinds)})


def write_dogs(root):
    folder = root / "stanford_dogs"
    breeds = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02086240-Shih-Tzu")
    found = {"train": ([], []), "test": ([], [])}
    for split, label, k in shots(3):
        file = f"{breeds[label]}/{breeds[label][:9]}_{k}.jpg"
        picture(folder / "Images" / file, label, k)
        found[split][0].append([file])
        found[split][1].append([label + 1])
    for split, (files, labels) in found.items():
        arrays = {"file_list": np.array(files, object), "labels": np.array(labels, np.uint8)}
        savemat(folder / f"{split}_list.mat", arrays)


def write_flowers(root):
    """Write three images of each of the 102 classes, whose names are not in the files."""
    folder = root / "flowers-102"
    numbers = np.arange(1, 307)
    for number in numbers:
        picture(folder / "jpg" / f"image_{number:05d}.jpg", *reversed(divmod(number - 1, 102)))
    savemat(folder / "imagelabels.mat", {"labels": (numbers - 1) % 102 + 1})
    thirds = dict(zip(("valid", "trnid", "tstid"), np.split(numbers, 3), strict=True))
    savemat(folder / "setid.mat", thirds)


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    breeds = ("Abyssinian", "american_bulldog", "Bengal")
    rows = {"train": [], "test": []}
    for split, label, k in shots(3):
        picture(folder / "images" / f"{breeds[label]}_{k}.jpg", label, k)
        rows[split].append((f"{breeds[label]}_{k}", label + 1, 1 + label % 2, 1))
    write_lines(folder / "annotations" / "trainval.txt", rows["train"])
    write_lines(folder / "annotations" / "test.txt", rows["test"])


def write_food(root):
    folder = root / "food-101"
    lists = {"train": {}, "test": {}}
    for split, label, k in shots(2):
        name = ("apple_pie", "beef_tartare")[label]
        picture(folder / "images" / name / f"{k}.jpg", label, k)
        lists[split].setdefault(name, []).append(f"{name}/{k}")
    (folder / "meta").mkdir()
    for split, found in lists.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(found))


def write_records(path, labels, number):
    """Write binary records of CIFAR; the last label of a record is the class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for k, row in enumerate(labels):
            pixels = np.full((3, 32, 32), 2 * row[-1], np.uint8)
            pixels[2, 31, 30] = number + k // 100  # distinguishes images of a label, and the axes
            file.write(bytes(row) + pixels.tobytes())


def write_cifar10(root):
    folder = root / "cifar-10-batches-bin"
    labels = [(label,) for label in range(10)]
    for number in range(1, 6):
        write_records(folder / f"data_batch_{number}.bin", labels, number)
    write_records(folder / "test_batch.bin", labels[::-1], 6)
    write_lines(folder / "batches.meta.txt", [*((word,) for word in THINGS), ()])


def write_cifar100(root):
    folder = root / "cifar-100-binary"
    labels = [(label % 20, label) for label in range(100)]
    write_records(folder / "train.bin", labels * 2, 1)
    write_records(folder / "test.bin", labels, 3)
    write_lines(folder / "fine_label_names.txt", [(f"thing_{k}",) for k in range(100)])


def write_tiny_imagenet(root):
    folder = root / "tiny-imagenet-200"
    words = {"n01443537": "goldfish, Carassius auratus", "n02012849": "crane", "n03126707": "crane"}
    annotations = []
    for split, label, k in shots(3):
        synset = list(words)[label]
        if split == "train":
            picture(folder / "train" / synset / "images" / f"{synset}_{k}.JPEG", label, k)
        else:
            picture(folder / "val" / "images" / f"val_{label}{k}.JPEG", label, k)
            annotations.append((f"val_{label}{k}.JPEG", synset, 0, 0, 7, 7))
        write_lines(folder / "train" / synset / f"{synset}_boxes.txt", [("a.JPEG", 0, 0, 7, 7)])
    write_lines(folder / "val" / "val_annotations.txt", annotations, "\t")
    write_lines(folder / "words.txt", {**words, "n00001740": "entity"}.items(), "\t")
    write_lines(folder / "wnids.txt", [(synset,) for synset in reversed(words)])


def write_imagenet(root):
    for split, label, k in shots(2):
        synset = ("n01440764", "n01443537")[label]
        folder = root / "imagenet" / {"train": "train", "test": "val"}[split] / synset
        picture(folder / f"{synset}_{k}.JPEG", label, k)


def write_voc(root, classes=20):
    """Write images whose largest object is of their class, beside a smaller one of the next."""
    folder = root / "VOCdevkit" / "VOC2012"
    lists = {"train": [], "test": []}
    for split, label, k in shots(classes):
        name = f"2007_{label:03d}{k:03d}"
        lists[split].append((name,))
        picture(folder / "JPEGImages" / f"{name}.jpg", label, k)
        objects = np.zeros((8, 8 + k), np.uint8)
        objects[:2, :3], objects[3:7, 2:7], objects[2, :] = 1, 2, 255
        kinds = np.array([0, 1 + (label + 1) % classes, 1 + label])
        for kind, values in {
            "SegmentationObject": objects,
            "SegmentationClass": np.where(objects == 255, 255, kinds[objects % 255]),
        }.items():
            mask = Image.fromarray(values.astype(np.uint8), "P")
            mask.putpalette([3 * n % 256 for n in range(768)])
            (folder / kind).mkdir(parents=True, exist_ok=True)
            mask.save(folder / kind / f"{name}.png")
    for split, theirs in {"train": "train", "test": "val"}.items():
        write_lines(folder / "ImageSets" / "Segmentation" / f"{theirs}.txt", lists[split])


WRITERS = {
    "pascal_voc": write_voc,
    "cub200": write_cub,
    "cub200_waterbirds": write_cub_waterbirds,
    "waterbirds": write_waterbirds,
    "fgvc_aircraft": write_aircraft,
    "stanford_cars": write_cars,
    "stanford_dogs": write_dogs,
    "oxford_flowers": write_flowers,
    "oxford_pets": write_pets,
    "food101": write_food,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "tiny_imagenet": write_tiny_imagenet,
    "imagenet": write_imagenet,
}


def accept_small_flowers(monkeypatch):
    """Let torchvision read lists of flowers whose MD5 it does not know."""
    from torchvision.datasets import Flowers102

    known = {kind: (file, None) for kind, (file, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", known)


def write_mnist(root, per_class=6):
    """Write the four files of MNIST in their own format, with few images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(head + array.tobytes())
    return images
