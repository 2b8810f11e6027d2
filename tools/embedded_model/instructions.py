"""DiffuseMix's nine instructions as classical image operations.

Each keeps every shape where it is and changes light, colour or texture, so that the class of an
image can still be seen. They teach the embedded InstructPix2Pix and are no augmentation.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter, median_filter, sobel

from online_aug.data.pocket_birds import smooth_noise

Image = Float[np.ndarray, "h w 3"]
Plane = Float[np.ndarray, "h w"]

_UKIYO_E_INKS = np.array(
    [
        (0.10, 0.15, 0.30),
        (0.24, 0.42, 0.60),
        (0.60, 0.72, 0.74),
        (0.94, 0.88, 0.72),
        (0.80, 0.30, 0.20),
        (0.84, 0.66, 0.36),
        (0.46, 0.52, 0.34),
    ]
)


def apply_instruction(
    prompt: str, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Edit an image as the instruction says; `rng` places flakes, leaves, bands and strokes."""
    edited = INSTRUCTIONS[prompt](image / 255, rng)
    return np.asarray(np.clip(edited * 255 + 0.5, 0, 255), np.uint8)


def _autumn(image: Image, rng: np.random.Generator) -> Image:
    """Turn green and blue into the colours of autumn, and add fallen leaves."""
    light = _light(image)
    gold = _ramp(light, (0.26, 0.10, 0.04), (0.86, 0.46, 0.10), (1.0, 0.86, 0.50))
    image = _blend(image, gold, 0.65)
    leaves = _leaves(*light.shape, count=int(rng.integers(14, 24)), rng=rng)
    for leaf in leaves:
        colour = rng.uniform((0.75, 0.12, 0.02), (0.98, 0.55, 0.10))
        image = np.where(leaf[..., None], colour, image)
    return image


def _snowy(image: Image, rng: np.random.Generator) -> Image:
    """Make the light cold and pale, add flakes, and snow on the ground."""
    light = _light(image)
    cold = _ramp(light, (0.34, 0.40, 0.50), (0.70, 0.77, 0.86), (1.0, 1.0, 1.0))
    image = _blend(image, cold, 0.65)
    height, width = light.shape
    down = np.linspace(0, 1, height)[:, None] + 0.14 * (smooth_noise(rng, height, 5) - 0.5)
    image = _blend(image, np.full(3, 0.97), np.clip((down - 0.80) / 0.08, 0, 1))
    flakes = gaussian_filter((rng.random((height, width)) < 0.018).astype(float), 1.0)
    return _blend(image, np.ones(3), np.clip(6 * flakes, 0, 1))


def _watercolor(image: Image, rng: np.random.Generator) -> Image:
    """Paint flat washes that granulate on white paper and darken at their edges."""
    smooth = np.stack([median_filter(image[..., c], 5) for c in range(3)], -1)
    side = len(image)
    wash = 0.45 + 0.5 * smooth_noise(rng, side, 4) + 0.15 * smooth_noise(rng, side, 20)
    edges = np.clip(1.6 * _edges(smooth), 0, 1)
    pigment = (1 - smooth) * np.array([0.95, 0.80, 0.55]) * (wash + 0.5 * edges)[..., None]
    paper = np.array([0.99, 0.98, 0.95])
    border = np.minimum.outer(_to_border(side), _to_border(image.shape[1])) * side
    ragged = np.clip(border / 3 - 2.0 * smooth_noise(rng, side, 10), 0, 1)
    return np.asarray(paper - np.clip(pigment, 0, 1) * ragged[..., None])


def _sunset(image: Image, rng: np.random.Generator) -> Image:
    """Put a sky from purple to orange with a low sun behind, and everything in its light."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] / height
    horizon = rng.uniform(0.62, 0.78)
    sky = _ramp(
        np.clip(y / horizon, 0, 1), (0.30, 0.10, 0.42), (0.90, 0.30, 0.28), (1.0, 0.72, 0.2)
    )
    sky[y > horizon] = (0.28, 0.08, 0.16)
    sun = np.hypot(x - rng.uniform(0.15, 0.85), y - horizon + 0.06) < 0.13
    sky[sun & (y <= horizon)] = (1.0, 0.93, 0.55)
    warm = image * np.array([1.05, 0.72, 0.55])
    return np.asarray(1 - (1 - 0.75 * warm) * (1 - 0.62 * sky))


def _rainbow(image: Image, rng: np.random.Generator) -> Image:
    """Lay a broad bow across the image."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] / height
    radius = np.hypot(x - rng.uniform(0.1, 0.9), y - rng.uniform(1.0, 1.3))
    inner = rng.uniform(0.45, 0.60)
    across = (radius - inner) / 0.42
    colours = _hue(0.78 * (1 - np.clip(across, 0, 1)))
    inside = np.clip(np.minimum(across, 1 - across) * 12, 0, 1)
    return _blend(image * 0.9 + 0.05, colours, 0.6 * inside)


def _aurora(image: Image, rng: np.random.Generator) -> Image:
    """Make it night, with green and violet curtains of light."""
    height, width = image.shape[:2]
    night = _blend(image, _light(image)[..., None] * np.array([0.7, 0.85, 1.2]), 0.6)
    night = night * 0.55 + np.array([0.01, 0.03, 0.10])
    y, x = np.mgrid[:height, :width] / height
    glow = np.zeros_like(image)
    for colour in ((0.10, 0.95, 0.45), (0.55, 0.25, 0.90)):
        wave = 0.10 * np.sin(2 * np.pi * (rng.uniform(0.8, 1.6) * x + rng.random()))
        above = rng.uniform(0.35, 0.65) + wave - y
        rays = 0.75 + 0.25 * np.sin(2 * np.pi * (rng.uniform(6, 9) * x + rng.random()))
        curtain = np.where(above > 0, np.exp(-above / 0.28), np.exp(above / 0.05)) * rays
        glow += curtain[..., None] * np.array(colour)
    return np.asarray(1 - (1 - np.clip(night, 0, 1)) * (1 - np.clip(0.85 * glow, 0, 1)))


def _mosaic(image: Image, rng: np.random.Generator) -> Image:
    """Lay square tiles of one vivid colour each, with dark joints."""
    height, width = image.shape[:2]
    tile = max(4, height // int(rng.integers(9, 12)))
    shift_y, shift_x = rng.integers(tile, size=2)
    rows, columns = (np.arange(height) + shift_y) // tile, (np.arange(width) + shift_x) // tile
    cells = rows[:, None] * (columns[-1] + 1) + columns
    sizes = np.maximum(np.bincount(cells.ravel()), 1)
    sums = np.stack([np.bincount(cells.ravel(), image[..., c].ravel()) for c in range(3)], -1)
    means = sums / sizes[:, None] + rng.uniform(-0.12, 0.12, (len(sizes), 3))
    tiles = 0.12 + 0.88 * _vivid(means, 1.5)[cells]
    joints = ((np.arange(height) + shift_y) % tile == 0)[:, None] | (
        (np.arange(width) + shift_x) % tile == 0
    )
    return np.where(joints[..., None], 0.25 * np.ones(3), tiles)


def _ukiyo_e(image: Image, rng: np.random.Generator) -> Image:
    """Print few flat inks as a woodblock does, with dark contours and a shaded sky band."""
    smooth = np.stack([median_filter(image[..., c], 3) for c in range(3)], -1)
    vivid = _vivid(0.08 + 0.92 * smooth, 1.4)
    distance = ((vivid[..., None, :] - _UKIYO_E_INKS) ** 2).sum(-1)
    printed = _UKIYO_E_INKS[distance.argmin(-1)]
    down = np.linspace(0, 1, len(image))[:, None]
    band = np.clip(1 - down / rng.uniform(0.18, 0.34), 0, 1) * np.ones(image.shape[1])
    printed = _blend(printed, np.array([0.80, 0.30, 0.20]), 0.8 * band)
    lines = np.clip(3.0 * _edges(smooth) - 0.5, 0, 1)
    return _blend(printed, np.array([0.08, 0.07, 0.10]), lines)


def _crayon(image: Image, rng: np.random.Generator) -> Image:
    """Hatch in colour on white paper, densely where the image is dark, and draw contours."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0.6, 0.95)
    wobble = 5 * smooth_noise(rng, height, 5)
    phase = (x * np.cos(angle) + y * np.sin(angle) + wobble) / 6.5 + rng.random()
    strokes = 0.5 + 0.5 * np.sin(2 * np.pi * phase) + 0.4 * (rng.random((height, width)) - 0.5)
    darkness = 1 - _light(image)
    covered = np.clip((strokes - (0.75 - 0.75 * darkness)) * 3, 0, 1) * (0.25 + 0.65 * darkness)
    drawn = _blend(np.full(image.shape, 0.98), 0.15 + 0.8 * _vivid(image, 1.6), covered)
    return _blend(drawn, 0.5 * image, np.clip(2.5 * _edges(image) - 0.3, 0, 0.9))


def _light(image: Image) -> Plane:
    return np.asarray(image @ np.array([0.30, 0.59, 0.11]))


def _blend(below: np.ndarray, above: np.ndarray, share: float | Plane) -> Image:
    """Put `above` over `below` with an opacity, one for all pixels or one for each."""
    weight = np.asarray(share)[..., None]
    return np.asarray(below * (1 - weight) + above * weight)


def _ramp(position: Plane, *colours: tuple[float, float, float]) -> Image:
    """Interpolate linearly between colours that are evenly spaced over [0, 1]."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(position, stops, channel) for channel in np.transpose(colours)], -1)


def _hue(turn: Plane) -> Image:
    """Return pure colours: 0 is red, 1/3 green, 2/3 blue."""
    offsets = np.abs((turn[..., None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return np.asarray(np.clip(offsets, 0, 1))


def _vivid(colours: np.ndarray, factor: float) -> np.ndarray:
    grey = colours.mean(-1, keepdims=True)
    return np.asarray(np.clip(grey + factor * (colours - grey), 0, 1))


def _edges(image: Image) -> Plane:
    """Return the gradient of the lightness, about 1 at an edge between black and white."""
    light = gaussian_filter(_light(image), 0.6)
    return np.asarray(np.hypot(sobel(light, 0), sobel(light, 1)) / 3)


def _to_border(length: int) -> np.ndarray:
    """Return the distance of every pixel to the nearer end, as a fraction of the side."""
    places = np.arange(length)
    return np.minimum(places, places[::-1]) / length


def _leaves(height: int, width: int, *, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    y, x = np.mgrid[:height, :width] / height
    leaves = []
    for _ in range(count):
        turn, across, down = rng.uniform(0, np.pi), rng.random(), rng.random()
        u = (x - across) * np.cos(turn) + (y - down) * np.sin(turn)
        v = (y - down) * np.cos(turn) - (x - across) * np.sin(turn)
        leaves.append((u / 0.045) ** 2 + (v / 0.022) ** 2 < 1)
    return leaves


INSTRUCTIONS: Mapping[str, Callable[[Image, np.random.Generator], Image]] = {
    "autumn": _autumn,
    "snowy": _snowy,
    "watercolor art": _watercolor,
    "sunset": _sunset,
    "rainbow": _rainbow,
    "aurora": _aurora,
    "mosaic": _mosaic,
    "ukiyo-e": _ukiyo_e,
    "a sketch with crayon": _crayon,
}
