"""A bank of fractals: one file, written once, mapped into the memory of every loader process."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from online_aug.config_method import FractalConfig
from online_aug.dataloader.images import IMAGE_SUFFIXES, read_image
from online_aug.errors import UserError
from online_aug.fractals.drawing import draw_fractal
from online_aug.locking import alone
from online_aug.seeding import numpy_rng

FORMAT = 1
"""Raised when the same settings give other pictures."""


@dataclass(frozen=True)
class FractalBank:
    """Square pictures in one file, read where they are used; pickles as its settings."""

    config: FractalConfig
    side_px: int
    pictures: tuple[Path, ...] | None
    """Files of the user's folder; None draws our own."""

    def __len__(self) -> int:
        """Pictures in the bank."""
        return self.config.count if self.pictures is None else len(self.pictures)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "side side 3"]:
        """One picture; read-only.

        Raises:
            UserError: If the bank was not written, see `ensure`.
        """
        return np.asarray(self._mapped[index])

    @cached_property
    def path(self) -> Path:
        """The file; its name tells the settings and, of a folder, its content's names and dates."""
        parts: list[object] = [FORMAT, self.side_px, len(self), self.config.seed]
        for picture in self.pictures or ():
            found = picture.stat()
            parts.append((str(picture), found.st_size, found.st_mtime_ns))
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()
        return self.config.path / f"{digest}.npy"

    def ensure(self) -> None:
        """Write the bank unless it is there; a second process that asks waits and takes it.

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
    """The bank of a configuration, not yet written; of a large folder a random part.

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
