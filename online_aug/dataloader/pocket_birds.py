"""Pocket birds: a drawn fine-grained data set with true masks and a habitat shortcut.

Twelve species in four families. Species of one family share their plumage and differ in small
parts only (beak, cap, wing bars, crest, tail), as sister species do. Like Waterbirds
(arXiv:1911.08731), the habitat agrees with the family in most training images and is independent
of it in validation and test, so a classifier that looks at the background is found out.

All birds look to the right and sit near the middle: a diffusion model small enough to come with the
package learns whole birds from that, and not from freely placed ones (docs/LOG.md).
"""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from online_aug.dataloader.bird_drawing import COLOURS, Scene, Species, render
from online_aug.seeding import numpy_rng

HABITATS = ("forest", "sea", "desert", "snow")
LIGHTS = ("noon", "dusk", "overcast")
POSES = ("perched", "flying")
TAILS = ("short", "long", "forked")
BEAKS = ("short", "long")
CORRELATION = 0.9
"""Share of training images whose habitat is the one of the family."""
IMAGES_PER_SPECIES = {"train": 60, "val": 15, "test": 40}

_FAMILIES = {
    "finch": Species(body="brown", wing="black", belly="yellow", cap="brown", beak="orange"),
    "tern": Species(body="white", wing="grey", belly="white", cap="black", beak="red"),
    "wren": Species(body="orange", wing="brown", belly="white", cap="orange", beak="black"),
    "jay": Species(body="blue", wing="black", belly="grey", cap="blue", beak="black"),
}
_SISTERS: dict[str, dict[str, dict[str, object]]] = {
    "finch": {"plain": {}, "redcap": {"cap": "red"}, "barred": {"wing_bars": 2}},
    "tern": {"short": {}, "fork": {"tail": "forked"}, "yellowbill": {"beak": "yellow"}},
    "wren": {"plain": {}, "spotted": {"has_spots": True}, "longbill": {"beak_length": "long"}},
    "jay": {"plain": {}, "crested": {"has_crest": True}, "longtail": {"tail": "long"}},
}
HOME = dict(zip(_FAMILIES, HABITATS, strict=True))
SPECIES: dict[str, Species] = {
    f"{sister}_{family}": replace(_FAMILIES[family], **change)  # type: ignore[arg-type]
    for family, sisters in _SISTERS.items()
    for sister, change in sisters.items()
}


def random_species(rng: np.random.Generator) -> Species:
    """A species that is none of the data set's: every plumage of theirs is redrawn."""
    plumages = {(s.body, s.wing, s.belly) for s in SPECIES.values()}
    body, wing, belly, cap, beak = (str(c) for c in rng.choice(list(COLOURS), 5))
    if (body, wing, belly) in plumages:
        return random_species(rng)
    return Species(
        body=body,
        wing=wing,
        belly=belly,
        cap=cap if rng.random() < 0.7 else body,
        beak=beak,
        beak_length=str(rng.choice(BEAKS)),
        tail=str(rng.choice(TAILS)),
        wing_bars=int(rng.choice([0, 0, 1, 2])),
        has_crest=bool(rng.random() < 0.3),
        has_spots=bool(rng.random() < 0.3),
    )


def random_scene(rng: np.random.Generator, habitat: str | None = None) -> Scene:
    """Pose, place, light and texture of one image; `habitat` is drawn too unless given."""
    return Scene(
        habitat=habitat or str(rng.choice(HABITATS)),
        light=str(rng.choice(LIGHTS)),
        pose=str(rng.choice(POSES)),
        x=float(rng.uniform(0.46, 0.53)),
        y=float(rng.uniform(0.51, 0.57)),
        scale=float(rng.uniform(0.52, 0.60)),
        tilt=float(rng.uniform(0.0, 0.2)),
        texture_seed=int(rng.integers(2**31)),
    )


def write_dataset(folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `train/ val/ test/` class folders, the masks under `masks/`, and `metadata.csv`.

    The same pixels on every machine: each image is a function of split, species and number.
    """
    total = len(SPECIES) * sum(IMAGES_PER_SPECIES.values())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "mask", "species", "family", "habitat", "light", "pose"])
        done = 0
        for split, count in IMAGES_PER_SPECIES.items():
            for name in SPECIES:
                for number in range(count):
                    table.writerow(_write_image(folder, split, name, number))
                    done += 1
                    if progress:
                        progress(done, total)


def _write_image(folder: Path, split: str, name: str, number: int) -> list[str]:
    rng = numpy_rng("pocket_birds", split, name, number)
    family = name.split("_")[1]
    at_home = split == "train" and rng.random() < CORRELATION
    scene = random_scene(rng, HOME[family] if at_home else None)
    image, mask = render(SPECIES[name], scene)
    path = Path(split) / name / f"{number:03d}.png"
    for array, place in ((image, path), (mask, "masks" / path)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / place)
    mask_path = ("masks" / path).as_posix()
    return [path.as_posix(), mask_path, name, family, scene.habitat, scene.light, scene.pose]
