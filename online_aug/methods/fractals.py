"""The fractal pictures that DiffuseMix blends over its images: drawn by us, or of a folder.

They are drawn once and kept in one file, a bank, which every loader process maps into its memory.
Half of ours are iterated function systems, half are Julia sets.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Float, Int, UInt8

from online_aug.data.images import IMAGE_SUFFIXES, read_image
from online_aug.errors import UserError
from online_aug.files import alone
from online_aug.seeding import numpy_rng
from online_aug.settings import Count, Pixels, Section, Seed


class FractalConfig(Section):
    """Fractal pictures that DiffuseMix blends over its images."""

    folder: Path | None = None
    """Folder of your own pictures; null draws ours: iterated function systems and Julia sets."""
    path: Path = Path("runs/fractals")
    """Folder in which the pictures are kept, one file for each set of settings."""
    count: Count = 300
    """Pictures drawn; of a folder that holds more, a random part of this size."""
    side_px: Pixels | None = None
    """Side of the kept squares, px; null takes `generation.resolution`, at most 256."""
    seed: Seed = 0
    """Seed of our own pictures and of the part of a folder."""


FORMAT = 1
"""Version of the drawing; raise it if the same settings give other pictures."""


@dataclass(frozen=True)
class FractalBank:
    """Square pictures in one file, read when they are used; pickles as its settings."""

    config: FractalConfig
    side_px: int
    pictures: tuple[Path, ...] | None
    """Files of the user's folder, or None to draw our own."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.config.count if self.pictures is None else len(self.pictures)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "side side 3"]:
        """Return one picture, read-only.

        Raises:
            UserError: If the bank was not written; see `ensure`.
        """
        return np.asarray(self._mapped[index])

    @cached_property
    def path(self) -> Path:
        """The file of the bank; its name is a digest of the settings and of a folder's files."""
        parts: list[object] = [FORMAT, self.side_px, len(self), self.config.seed]
        for picture in self.pictures or ():
            found = picture.stat()
            parts.append((str(picture), found.st_size, found.st_mtime_ns))
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()
        return self.config.path / f"{digest}.npy"

    def ensure(self) -> None:
        """Write the bank unless it is there; a second process waits for the first.

        Raises:
            UserError: If the folder of banks cannot be written, or a picture cannot be read.
        """
        try:
            with alone(self.path.with_suffix(".lock")):
                if not self.path.is_file():
                    self._write()
        except OSError as error:
            raise UserError(
                f"fractals.path must be a writable folder, got {self.config.path} ({error})"
            ) from error

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        shape = (len(self), self.side_px, self.side_px, 3)
        bank = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        for number in range(len(self)):
            bank[number] = self._picture(number)
        bank.flush()
        partial.replace(self.path)

    def _picture(self, number: int) -> UInt8[np.ndarray, "side side 3"]:
        if self.pictures is None:
            return draw_fractal(self.side_px, numpy_rng("fractal", self.config.seed, number))
        picture = PIL.Image.fromarray(read_image(self.pictures[number]))
        return np.asarray(PIL.ImageOps.fit(picture, (self.side_px, self.side_px)))

    @cached_property
    def _mapped(self) -> np.ndarray:
        try:
            return np.asanyarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(f"fractals.path has no readable bank {self.path}: {error}") from error

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # A mapped array would be copied to every process.
        return FractalBank, (self.config, self.side_px, self.pictures)


def bank_of(config: FractalConfig, side_px: int) -> FractalBank:
    """Return the bank of a configuration without writing it.

    Raises:
        UserError: If the user's folder holds no images.
    """
    if config.folder is None:
        return FractalBank(config, side_px, None)
    found = sorted(
        path
        for path in config.folder.expanduser().rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not found:
        raise UserError(
            f"fractals.folder must be a folder with images, got {config.folder}; "
            "null takes our own fractals"
        )
    chosen = numpy_rng("folder", config.seed).permutation(len(found))[: config.count]
    return FractalBank(config, side_px, tuple(found[place] for place in sorted(chosen)))


Plane = Float[np.ndarray, "h w"]
Colours = Float[np.ndarray, "h w 3"]

WALKERS, WALK_STEPS, WARM_UP_STEPS = 4096, 32, 12
MAX_ITERATIONS = 48
TRIES = 8
LEAST_SPREAD = 0.12
"""Standard deviation of the brightness below which a picture is empty and drawn again."""


def draw_fractal(side_px: int, rng: np.random.Generator) -> UInt8[np.ndarray, "side side 3"]:
    """Draw a square picture with structure at all scales."""
    draw = draw_function_system if rng.random() < 0.5 else draw_julia_set
    fullest, spread = np.zeros((side_px, side_px, 3)), 0.0
    for _ in range(TRIES):
        picture = draw(side_px, rng)
        if (found := float(picture.mean(-1).std())) > spread:
            fullest, spread = picture, found
        if spread >= LEAST_SPREAD:
            break
    return np.asarray(fullest * 255 + 0.5, np.uint8)


def draw_function_system(side_px: int, rng: np.random.Generator) -> Colours:
    """Draw the walks of a random iterated function system over a soft ground.

    The system has two to six affine maps. Their singular values add up to what Anderson and Farrell
    (arXiv:2110.03091, 3.2) found to make neither dust nor blobs. A pixel's brightness is the
    logarithm of its visits, its colour depends on the maps that led there.
    """
    matrices, shifts = _contractions(int(rng.integers(2, 7)), rng)
    points, tints = _walk(matrices, shifts, rng)
    low, high = np.quantile(points[::16], (0.01, 0.99), axis=0)
    cells = ((points - low) / np.maximum(high - low, 1e-9) * 0.86 + 0.07) * side_px
    inside = ((cells >= 0) & (cells < side_px)).all(1)
    columns, rows = cells[inside].astype(np.int64).T
    places = rows * side_px + columns
    visits = np.bincount(places, minlength=side_px**2).astype(float)
    tint = np.bincount(places, tints[inside], minlength=side_px**2) / np.maximum(visits, 1)
    light = np.log1p(visits) / np.log1p(np.quantile(visits, 0.995) + 1)
    shape = (side_px, side_px)
    ink = _palette(tint.reshape(shape), rng)
    share = np.clip(light, 0, 1).reshape(shape)[..., None] ** 0.7
    return np.asarray(_ground(side_px, rng) * (1 - share) + ink * share)


def draw_julia_set(side_px: int, rng: np.random.Generator) -> Colours:
    """Draw how soon points escape under z^2 + c, for a c just outside the Mandelbrot set's body."""
    angle = rng.uniform(0, 2 * np.pi)
    constant = (np.exp(1j * angle) / 2 - np.exp(2j * angle) / 4) * rng.uniform(1.01, 1.10)
    places = np.linspace(-1, 1, side_px)
    turn = np.exp(1j * rng.uniform(0, 2 * np.pi))
    centre = complex(*rng.uniform(-0.4, 0.4, 2))
    plane = (places[None, :] + 1j * places[:, None]) * turn * rng.uniform(0.45, 1.4) + centre
    times = _escape_times(plane, constant)
    return _palette(np.sqrt(times / MAX_ITERATIONS) * rng.uniform(1.0, 2.5), rng)


def _contractions(
    count: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n 2 2"], Float[np.ndarray, "n 2"]]:
    sizes = np.sort(rng.uniform(0.1, 1, (count, 2)), axis=1)[:, ::-1]
    wanted = rng.uniform(5 + count, 6 + count) / 2
    sizes = np.clip(sizes * wanted / (sizes @ np.array([1, 2])).sum(), 0.02, 0.95)
    before, after = _rotations(rng.uniform(0, 2 * np.pi, (2, count)))
    mirrored = sizes * rng.choice([-1, 1], (count, 2))
    matrices = after @ (mirrored[:, :, None] * before)
    return matrices, rng.uniform(-1, 1, (count, 2))


def _rotations(angles: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, "2 n 2 2"]:
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _walk(
    matrices: Float[np.ndarray, "n 2 2"], shifts: Float[np.ndarray, "n 2"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, " p"]]:
    # Larger maps are chosen more often; a tint in [0, 1] tells which maps led to a point.
    areas = np.abs(np.linalg.det(matrices)) + 0.01
    points, tints = np.zeros((WALKERS, 2)), np.full(WALKERS, 0.5)
    kept_points, kept_tints = [], []
    for maps in _choices(areas / areas.sum(), rng):
        points = np.einsum("wij,wj->wi", matrices[maps], points) + shifts[maps]
        tints = (tints + maps / max(1, len(shifts) - 1)) / 2
        kept_points.append(points)
        kept_tints.append(tints)
    return np.concatenate(kept_points[WARM_UP_STEPS:]), np.concatenate(kept_tints[WARM_UP_STEPS:])


def _choices(
    weights: Float[np.ndarray, " n"], rng: np.random.Generator
) -> Int[np.ndarray, "steps walkers"]:
    draws = rng.random((WALK_STEPS + WARM_UP_STEPS, WALKERS))
    return np.minimum(np.searchsorted(np.cumsum(weights), draws), len(weights) - 1)


def _escape_times(plane: np.ndarray, constant: complex) -> Plane:
    # Iterations until |z| > 4, with a fraction, so that no steps are seen.
    z = plane.ravel().copy()
    times = np.full(z.shape, float(MAX_ITERATIONS))
    left = np.arange(z.size)
    for number in range(MAX_ITERATIONS):
        z = z * z + constant
        size = np.abs(z)
        is_out = size > 4
        fraction = np.log2(np.log2(size[is_out]))
        times[left[is_out]] = np.clip(number + 1 - fraction, 0, MAX_ITERATIONS)
        z, left = z[~is_out], left[~is_out]
    return times.reshape(plane.shape)


def _palette(position: Plane, rng: np.random.Generator) -> Colours:
    # Three cosines of random phase, two of random pitch: smooth colours, no two palettes alike.
    pitch = np.array([1.0, *rng.uniform(0.6, 1.7, 2)])
    phase = rng.random(3)
    return np.asarray(0.5 + 0.5 * np.cos(2 * np.pi * (position[..., None] * pitch + phase)))


def _ground(side_px: int, rng: np.random.Generator) -> Colours:
    # A dark slope between two colours.
    places = np.linspace(0, 1, side_px)
    angle = rng.uniform(0, 2 * np.pi)
    slope = 0.5 + 0.5 * (
        (places[:, None] - 0.5) * np.sin(angle) + (places - 0.5) * np.cos(angle)
    ) * np.sqrt(2)
    first, second = rng.uniform(0, 0.35, (2, 3))
    return np.asarray(first * (1 - slope[..., None]) + second * slope[..., None])
