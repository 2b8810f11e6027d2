"""Pocket birds: a drawn fine-grained data set with true masks and a habitat shortcut.

Twelve species in four families. Species of one family share their plumage and differ in small
parts only (beak, cap, wing bars, crest, tail), as sister species do. As in Waterbirds
(arXiv:1911.08731), the habitat agrees with the family in most training images and is independent
of it in validation and test, which exposes a classifier that looks at the background.

All birds face right and sit near the middle: the embedded diffusion model is small and learns whole
birds only from such images (docs/LOG.md).
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from online_aug.seeding import numpy_rng

SIZE_PX = 64
SUPERSAMPLING = 2
Mask = np.ndarray
"""Boolean array, `h w`."""
Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""
COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.14, 0.12),
    "orange": (0.93, 0.52, 0.12),
    "yellow": (0.95, 0.84, 0.22),
    "green": (0.25, 0.55, 0.20),
    "blue": (0.16, 0.36, 0.76),
    "purple": (0.48, 0.22, 0.60),
    "pink": (0.93, 0.56, 0.66),
    "brown": (0.45, 0.29, 0.16),
    "black": (0.10, 0.10, 0.12),
    "white": (0.95, 0.95, 0.93),
    "grey": (0.53, 0.54, 0.56),
}


@dataclass(frozen=True, kw_only=True)
class Species:
    """Everything that distinguishes one species from another; all of it is visible."""

    body: str
    wing: str
    belly: str
    cap: str
    beak: str
    beak_length: str = "short"
    tail: str = "short"
    wing_bars: int = 0
    has_crest: bool = False
    has_spots: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that varies between images of one species."""

    habitat: str
    light: str
    pose: str
    x: float
    """Centre of the body from the left, as a fraction of the side."""
    y: float
    """Centre of the body from the top, as a fraction of the side."""
    scale: float
    """Length of the body, as a fraction of the side."""
    tilt: float
    """Rotation, radians; positive raises the head."""
    texture_seed: int


HABITATS = ("forest", "sea", "desert", "snow")
LIGHTS = ("noon", "dusk", "overcast")
POSES = ("perched", "flying")
TAILS = ("short", "long", "forked")
BEAKS = ("short", "long")
CORRELATION = 0.9
"""Share of training images that are placed in the family's habitat; the others draw one."""
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


def write_dataset(folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write class folders under `train/ val/ test/`, the masks under `masks/`, and `metadata.csv`.

    Each image is a function of split, species and number, the same on every machine.
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


def random_species(rng: np.random.Generator) -> Species:
    """Draw a species whose plumage is not that of any species in the data set."""
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
    """Draw pose, position, light and texture of one image, and its habitat unless it is given."""
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


def render(
    species: Species, scene: Scene
) -> tuple[UInt8[np.ndarray, "64 64 3"], UInt8[np.ndarray, "64 64"]]:
    """Draw an image and its true foreground mask (255 on the bird)."""
    side = SIZE_PX * SUPERSAMPLING
    picture = _background(scene, side)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    u, v = _to_bird(x, y, scene)
    foreground = np.zeros((side, side), bool)
    if scene.pose == "perched":
        _paint(picture, (np.abs(v - 0.52 - 0.03 * np.sin(7 * u)) < 0.035), (0.30, 0.20, 0.12))
    for shape, colour in _parts(species, scene, u, v):
        _paint(picture, shape, colour)
        foreground |= shape
    shade = np.clip(1.06 - 0.32 * v, 0.75, 1.25)
    picture[foreground] *= shade[foreground, None]
    picture = _lit(picture, scene.light)
    image = np.clip(_reduced(picture) * 255 + 0.5, 0, 255).astype(np.uint8)
    mask = np.where(_reduced(foreground[..., None].astype(float))[..., 0] >= 0.5, 255, 0)
    return image, mask.astype(np.uint8)


def smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Float[np.ndarray, "h w"]:
    """Return smooth noise in [0, 1] with about `cells` blobs along a side."""
    grid = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)


def _to_bird(x: np.ndarray, y: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Convert to coordinates of the bird: body length 1, origin at its centre, u to the beak."""
    u, v = (x - scene.x) / scene.scale, (y - scene.y) / scene.scale
    cos, sin = np.cos(scene.tilt), np.sin(scene.tilt)
    return u * cos - v * sin, u * sin + v * cos


def _parts(
    species: Species, scene: Scene, u: np.ndarray, v: np.ndarray
) -> list[tuple[Mask, Colour]]:
    """Return the shapes from back to front, each with its colour."""
    body = _ellipse(u, v, 0, 0, 0.48, 0.29)
    head = _ellipse(u, v, 0.40, -0.27, 0.215, 0.205)
    colour = COLOURS
    parts = [
        (_tail(species.tail, u, v), colour[species.wing]),
        (body | head, colour[species.body]),
        (body & (v > 0.05 - 0.15 * u), colour[species.belly]),
        (head & (v < -0.31), colour[species.cap]),
        (_beak(species.beak_length, u, v), colour[species.beak]),
    ]
    if scene.pose == "perched":
        legs = ((np.abs(u + 0.02) < 0.022) | (np.abs(u - 0.14) < 0.022)) & (v > 0.25) & (v < 0.5)
        parts.insert(0, (legs, (0.35, 0.25, 0.15)))
    if species.has_crest:
        crest = _polygon(u, v, ((0.22, -0.40), (0.10, -0.72), (0.45, -0.44)))
        parts.insert(0, (crest, colour[species.cap]))
    if species.has_spots:
        dots = (np.mod(u, 0.12) - 0.06) ** 2 + (np.mod(v + 0.03, 0.12) - 0.06) ** 2 < 0.0011
        parts.append((body & (v > 0.08 - 0.15 * u) & dots, (0.12, 0.10, 0.10)))
    parts += _wing(species, scene, u, v)
    parts.append((_ellipse(u, v, 0.45, -0.28, 0.062, 0.062), (0.97, 0.97, 0.95)))
    parts.append((_ellipse(u, v, 0.46, -0.28, 0.04, 0.04), (0.04, 0.04, 0.05)))
    return parts


def _wing(
    species: Species, scene: Scene, u: np.ndarray, v: np.ndarray
) -> list[tuple[Mask, Colour]]:
    if scene.pose == "flying":
        wing = _polygon(u, v, ((-0.28, -0.02), (0.20, -0.02), (0.02, -0.42), (-0.34, -0.80)))
        along = -v - 0.08
    else:
        wing = _ellipse(u + 0.3 * (v + 0.02), v, -0.10, -0.02, 0.34, 0.165)
        along = 0.18 - u
    parts = [(wing, COLOURS[species.wing])]
    bar_colour = (0.97, 0.97, 0.95) if species.wing != "white" else (0.1, 0.1, 0.1)
    for number in range(species.wing_bars):
        bar = wing & (np.abs(along - 0.12 - 0.17 * number) < 0.038)
        parts.append((bar, bar_colour))
    return parts


def _tail(kind: str, u: np.ndarray, v: np.ndarray) -> Mask:
    end = -0.66 if kind == "short" else -0.92
    tail = _polygon(u, v, ((-0.30, -0.12), (-0.30, 0.12), (end, 0.20), (end, -0.02)))
    if kind == "forked":
        tail &= ~_polygon(u, v, ((-0.52, 0.06), (-0.95, 0.16), (-0.95, 0.02)))
    return tail


def _beak(length: str, u: np.ndarray, v: np.ndarray) -> Mask:
    tip = 0.78 if length == "short" else 0.96
    return _polygon(u, v, ((0.57, -0.36), (tip, -0.22), (0.57, -0.18)))


def _ellipse(u: np.ndarray, v: np.ndarray, cu: float, cv: float, ru: float, rv: float) -> Mask:
    return np.asarray(((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 < 1)


def _polygon(u: np.ndarray, v: np.ndarray, corners: tuple[tuple[float, float], ...]) -> Mask:
    """Return the inside of a convex polygon whose corners run in either direction."""
    sides = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        sides.append((u1 - u0) * (v - v0) - (v1 - v0) * (u - u0))
    stack = np.stack(sides)
    return np.asarray((stack >= 0).all(0) | (stack <= 0).all(0))


def _paint(picture: np.ndarray, shape: Mask, colour: Colour) -> None:
    picture[shape] = colour


def _background(scene: Scene, side: int) -> Float[np.ndarray, "h w 3"]:
    rng = np.random.default_rng(scene.texture_seed)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    coarse, fine = smooth_noise(rng, side, 5), smooth_noise(rng, side, 16)
    if scene.habitat == "forest":
        trunks = np.sin(2 * np.pi * (x * rng.uniform(2.5, 4) + rng.random()) + 1.2 * coarse) > 0.72
        green = np.stack([0.16 + 0.14 * fine, 0.34 + 0.24 * coarse, 0.12 + 0.08 * fine], -1)
        bark = np.stack([0.28 + 0.1 * fine, 0.20 + 0.06 * fine, 0.12 + 0.04 * fine], -1)
        return np.where(trunks[..., None], bark, green)
    if scene.habitat == "sea":
        phase = y * rng.uniform(8, 12) + 0.6 * coarse + 0.12 * np.sin(12 * x)
        waves = np.sin(2 * np.pi * phase) * (0.3 + 0.7 * y)
        return np.stack(
            [0.18 + 0.08 * waves, 0.48 + 0.10 * waves + 0.06 * fine, 0.66 + 0.12 * waves], -1
        )
    if scene.habitat == "desert":
        ripple = np.sin(2 * np.pi * (y * rng.uniform(4, 6) + 0.5 * np.sin(3 * x) + 0.8 * coarse))
        sand = 0.08 * ripple + 0.10 * (fine - 0.5)
        return np.stack([0.85 + sand, 0.68 + sand, 0.42 + 0.8 * sand], -1)
    drift = 0.10 * (coarse - 0.5)
    flakes = (fine > 0.80) * 0.12
    return np.stack([0.78 + drift + flakes, 0.83 + drift + flakes, 0.90 + drift + flakes], -1)


def _lit(picture: Float[np.ndarray, "h w 3"], light: str) -> Float[np.ndarray, "h w 3"]:
    if light == "dusk":
        return np.asarray(np.multiply(picture, (1.0, 0.76, 0.62)))
    if light == "overcast":
        grey = picture.mean(-1, keepdims=True)
        return np.asarray((0.55 * picture + 0.45 * grey) * 0.82)
    return picture


def _reduced(picture: np.ndarray) -> np.ndarray:
    n = SUPERSAMPLING
    h, w, c = picture.shape
    return np.asarray(picture.reshape(h // n, n, w // n, n, c).mean((1, 3)))
