"""Captions that name what varies in a picture and never its class.

The embedded model is to its data what Stable Diffusion is to birds: it knows the domain and obeys
words, but a class is new to it. So a caption of a digit speaks of thickness, slant, width and where
the ink is; one of a bird speaks of colours, parts, pose, light and habitat of a species that is in
no data set.
"""

import numpy as np
from jaxtyping import Float, UInt8

from online_aug.dataloader.bird_drawing import Scene, Species

PREFIX = "a photo of a"
WORD_DROPOUT = 0.1
"""Probability that a phrase is left out, so that each works without the others."""
_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "center", "right")


def bird_caption(species: Species, scene: Scene, rng: np.random.Generator) -> str:
    """A description of one drawn bird with phrases left out and in random order."""
    places = {"forest": "in a forest", "sea": "over the sea", "desert": "in a desert"}
    parts = [
        f"{species.body} body",
        f"{species.wing} wing",
        f"{species.belly} belly",
        f"{species.cap} cap",
        f"{species.beak_length} {species.beak} beak",
        f"{species.tail} tail",
    ]
    if species.wing_bars:
        parts.append("one wing bar" if species.wing_bars == 1 else "two wing bars")
    parts += ["crest"] * species.has_crest + ["spots"] * species.has_spots
    setting = [
        scene.pose,
        places.get(scene.habitat, "in the snow"),
        {"noon": "at noon", "dusk": "at dusk"}.get(scene.light, "under clouds"),
    ]
    return f"{PREFIX} bird " + _spoken([*setting, *parts], rng)


def digit_caption(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> str:
    """A description of one handwritten digit's stroke, with phrases left out."""
    ink = image[..., 0].astype(np.float64) / 255
    slant, width, weight = _stroke(ink)
    words = [
        "thin" if weight < 0.29 else "thick" if weight > 0.325 else "regular",
        "leaning left" if slant > 0.09 else "leaning right" if slant < -0.03 else "upright",
        "narrow" if width < 0.148 else "wide" if width > 0.17 else "normal",
    ]
    cells = _cells(ink)
    dark = [f"{_ROWS[r]} {_COLUMNS[c]}" for r in range(3) for c in range(3) if cells[r, c] > 0.45]
    clear = [f"{_ROWS[r]} {_COLUMNS[c]}" for r in range(3) for c in range(3) if cells[r, c] < 0.15]
    phrases = words + [f"ink {place}" for place in dark] + [f"gap {place}" for place in clear]
    return f"{PREFIX} digit " + _spoken(phrases, rng)


def _spoken(phrases: list[str], rng: np.random.Generator) -> str:
    """Phrases in random order; a tenth of the captions is empty but for the prefix's noun."""
    if rng.random() < 0.1:
        return ""
    kept = [phrase for phrase in phrases if rng.random() >= WORD_DROPOUT]
    return " ".join(kept[i] for i in rng.permutation(len(kept)))


def _cells(ink: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "3 3"]:
    """Mean ink in a 3 x 3 grid over the middle 48 of 64 columns, where the strokes are."""
    side = ink.shape[0]
    rows = np.array_split(ink, 3, axis=0)
    margin = side // 8
    return np.array(
        [[c.mean() for c in np.array_split(row[:, margin:-margin], 3, axis=1)] for row in rows]
    )


def _stroke(ink: Float[np.ndarray, "h w"]) -> tuple[float, float, float]:
    """Slant (shear of x over y), spread of x (fraction of the side), share of ink."""
    side = ink.shape[0]
    total = ink.sum() + 1e-9
    y, x = np.mgrid[:side, :side] / side
    dx, dy = x - (ink * x).sum() / total, y - (ink * y).sum() / total
    slant = (ink * dx * dy).sum() / ((ink * dy * dy).sum() + 1e-9)
    return float(slant), float(np.sqrt((ink * dx * dx).sum() / total)), float(ink.mean())
