"""The mask files of an experiment's training images: found, checked all at once, read as maps."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cache import content_digest
from online_aug.config import Config
from online_aug.console import progress
from online_aug.data.image_sets import ImageSet, file_names_of, folder_of
from online_aug.data.images import BadImageError, image_size, read_bytes, read_levels
from online_aug.errors import UserError
from online_aug.saliency.mask_files import FOLDERS, NUMBERED, mask_map, mask_names

_LOG = logging.getLogger(__name__)
_THREADS = 8
_QUICK = 1000
"""Masks that are checked before a progress bar would be read."""
_BATCH_SIZE = 256
_NAMED = 3
"""How many masks of one fault an error names."""
_WAYS_OUT = {
    "of another aspect ratio": "saliency.layout=stretched takes masks that were stretched",
    "missing": "saliency.layout says how a folder is laid out",
}


class BadMaskError(UserError):
    """A mask cannot be used; the message is the reason."""


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a set of images in a folder."""

    config: Config
    images: ImageSet

    @cached_property
    def folder(self) -> Path:
        """The folder that holds the masks.

        Raises:
            UserError: If there is none.
        """
        named, layout = self.config.saliency.masks, self.config.saliency.layout
        own = self.config.data.root / self.config.data.source / "masks"  # of pocket_birds
        folder = (own if named is None else named).expanduser()
        if not folder.is_dir():
            raise UserError(
                "saliency.masks must be a folder with a mask for each training image, "
                f"got {folder}, which is none"
            )
        inner = folder / FOLDERS.get(layout, ".")
        return inner if inner.is_dir() else folder

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The mask file of each image, in the order of the set; it may be missing.

        Raises:
            UserError: If the images are not files, so that none can be told by its name.
        """
        files, root = file_names_of(self.images), folder_of(self.images)
        if root is None:
            raise UserError(
                "saliency.method must be another than masks for images that are not files, got "
                f"masks for data.source {self.config.data.source}"
            )
        return tuple(self._path(*self._relative(root, file)) for file in files)

    def _relative(self, root: Path, file: str) -> tuple[str, str]:
        """Return the image's file below the folder of its split, and that folder's name."""
        path = root / file
        whole = self.config.data.root.expanduser()
        if root == Path() and path.is_relative_to(whole):  # timm lists files from the root on
            return path.relative_to(whole).as_posix(), ""
        return Path(file).as_posix(), root.name

    def _path(self, file: str, split: str) -> Path:
        names = mask_names(file, split, self.config.saliency.layout)
        paths = [self.folder / name for name in names]
        return next((path for path in paths if path.is_file()), paths[0])

    @cached_property
    def version(self) -> str:
        """Name of the maps: digest of the content of all mask files, and the layout."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            content = read_bytes(path) if path.is_file() else b""
            digest.update(f"{path.name} {content_digest(content)}\n".encode())
        return f"masks-{self.config.saliency.layout}-{digest.hexdigest()}"

    def check(self) -> None:
        """Read every mask; tell all that cannot be used, by fault and name.

        With `data.on_bad_image: skip` they are left out, and only told.

        Raises:
            UserError: If one cannot be used and is not skipped, or none can.
        """
        faults: dict[str, list[str]] = {}
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            progress("checking masks", len(self.paths), enabled=self._takes_long) as bar,
        ):
            for place, fault in enumerate(pool.map(self._fault, range(len(self.paths)))):
                if fault is not None:
                    faults.setdefault(fault, []).append(self._name(place))
                bar.advance()
        if not faults:
            return
        said = f"{', '.join(map(_told, faults, faults.values()))}"
        if self.config.data.on_bad_image == "skip" and sum(map(len, faults.values())) < len(
            self.paths
        ):
            _LOG.warning("of %d masks: %s; left out", len(self.paths), said)
            return
        ways_out = [_WAYS_OUT[fault] for fault in faults if fault in _WAYS_OUT]
        ways_out.append("data.on_bad_image=skip leaves such images out")
        raise UserError(
            f"saliency.masks must hold a usable mask for each of the {len(self.paths)} training "
            f"images, got {said}; {'; '.join(ways_out)}"
        )

    @property
    def _takes_long(self) -> bool:
        return len(self.paths) > _QUICK

    def _name(self, place: int) -> str:
        path = self.paths[place]
        return str(path.relative_to(self.folder))

    def _fault(self, place: int) -> str | None:
        try:
            self.map_of(place)
        except BadMaskError as error:
            return str(error)
        return None

    def map_of(self, place: int) -> Float[np.ndarray, "64 64"]:
        """Return the map of one image.

        Raises:
            BadMaskError: If its mask cannot be used; says what it is.
            BadImageError: If the image itself cannot be read.
        """
        path, layout = self.paths[place], self.config.saliency.layout
        if not path.is_file():
            raise BadMaskError("missing")
        root = folder_of(self.images) or Path()
        size = image_size(root / file_names_of(self.images)[place])
        try:
            levels = read_levels(path, numbers_palette=layout in NUMBERED)
        except BadImageError:
            raise BadMaskError("unreadable") from None
        try:
            return mask_map(levels, size, layout)
        except ValueError as error:
            raise BadMaskError(str(error)) from None

    def maps(
        self, places: Sequence[int], *, is_shown: bool = True
    ) -> Iterator[Mapping[int, Float[np.ndarray, "64 64"]]]:
        """Yield the maps of some images by their indices, a batch at a time.

        Raises:
            UserError: If a mask cannot be used, and such images are not left out.
        """
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            progress("reading masks", len(places), enabled=is_shown) as bar,
        ):
            for start in range(0, len(places), _BATCH_SIZE):
                some = places[start : start + _BATCH_SIZE]
                found = zip(some, pool.map(self._map_if_good, some), strict=True)
                yield {place: values for place, values in found if values is not None}
                bar.advance(len(some))

    def _map_if_good(self, place: int) -> Float[np.ndarray, "64 64"] | None:
        try:
            return self.map_of(place)
        except BadMaskError as error:
            if self.config.data.on_bad_image == "skip":
                return None
            raise UserError(f"mask {self.paths[place]} is {error}") from None


def _told(fault: str, names: Sequence[str]) -> str:
    named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{len(names)} {fault} ({named})"
