"""The saliency maps of an experiment: which ones it needs, and how they are made.

A version names everything that decides a map but the image. So the cache keeps maps by version and
image, and they serve every run, seed and method that asks for the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from cache import Store, cache_exists, content_digest
from online_aug.classifier.model import (
    build_classifier,
    check_name,
    input_statistics,
    sees_one_size,
)
from online_aug.config import Config
from online_aug.console import progress
from online_aug.data.image_sets import ImageSet, ordered_batches
from online_aug.data.transforms import EvalTransform, Frame, normalise
from online_aug.errors import UserError
from online_aug.files import alone, lock_of_user
from online_aug.loader.pool import open_store
from online_aug.methods import find_method
from online_aug.saliency import SaliencyTable, grad_cam, quick_copy, spectral_residual
from online_aug.saliency.maps import encode_map, file_version, read_maps, spectral_version

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

BATCH_SIZE = 64
Look = Callable[[UInt8[Tensor, "b 3 s s"], Int[Tensor, " b"]], Float[Tensor, "b u v"]]
"""From uint8 images and their classes to maps in [0, 1]."""


@dataclass(frozen=True)
class ExperimentSaliency:
    """The saliency maps that a configuration needs."""

    config: Config

    @property
    def is_needed(self) -> bool:
        """Whether planning needs to know where the foregrounds are."""
        mixing = self.config.mixing
        is_planned = mixing.is_synthetic and mixing.imported != "only"
        methods = (find_method(settings.name) for settings in self.config.methods)
        return is_planned and any(method.uses_saliency for method in methods)

    @property
    def weights(self) -> Path | None:
        """File of the teacher's weights; None if the maps do not come from such a file."""
        saliency = self.config.saliency
        is_asked = saliency.method == "grad_cam" and isinstance(saliency.teacher, Path)
        return Path(saliency.teacher) if is_asked else None

    @property
    def teacher_name(self) -> str:
        """timm name of the model that looks at the images."""
        return self.config.saliency.name or self.config.classifier.name

    @property
    def teacher_size(self) -> int:
        """Side of the square that the teacher looks at, px."""
        return self.config.saliency.image_size or self.config.data.image_size

    @cached_property
    def version(self) -> str | None:
        """Version of the maps; None if none are needed, or they follow the classifier in training.

        Raises:
            UserError: If the file of the teacher's weights cannot be read.
        """
        if not self.is_needed:
            return None
        if self.config.saliency.method == "spectral_residual":
            return spectral_version(self.teacher_size)
        if self.weights is None:
            return None
        try:
            return file_version(self.weights, self.teacher_name, self.teacher_size)
        except OSError as error:
            raise UserError(
                f"saliency.teacher must be a file of weights, cannot read {self.weights}: "
                f"{error.strerror}"
            ) from None

    @property
    def follows_classifier(self) -> bool:
        """Whether the maps, and so the requests, come from the classifier being trained."""
        return self.is_needed and self.version is None

    def is_complete(self, digests: Sequence[str]) -> bool:
        """Return whether no maps of these images are left to make before the start."""
        if self.version is None:
            return True
        if not cache_exists(self.config.cache.path):
            return False
        return len(self._maps(self.version, digests)) == len(digests)

    def table(self, version: str, digests: Sequence[str]) -> SaliencyTable:
        """Return the maps of one version, for all of these images.

        Raises:
            UserError: If the cache does not hold all of them.
        """
        maps = self._maps(version, digests)
        if len(maps) < len(digests):
            raise UserError(
                f"cache {self.config.cache.path} must hold the saliency maps {version} of all "
                f"{len(digests)} training images, has {len(maps)}; "
                "run online-aug train once to make them"
            )
        return SaliencyTable.from_maps(version, maps)

    def _maps(self, version: str, digests: Sequence[str]) -> dict[str, Float[np.ndarray, "u v"]]:
        with Store(self.config.cache.path, readonly=True) as store:
            return read_maps(store.get_saliency, version, digests)


def ensure_saliency(experiment: "Experiment") -> None:
    """Make the maps that planning needs, unless the cache holds them.

    If several processes share a cache, such as the ranks of a node, one makes the maps and the
    others wait.

    Raises:
        UserError: If the teacher's weights cannot be used, or an image cannot be read.
        CacheError: If the cache cannot be written.
    """
    version = experiment.saliency.version
    if version is None or experiment.has_maps:
        return
    with alone(maps_lock(experiment.config.cache.path)):
        if not experiment.has_maps:
            with open_store(experiment.config, experiment.splits.train) as store:
                make_maps(experiment, store, version, _first_look(experiment))


def maps_lock(cache: Path) -> Path:
    """Return the lock that is held while the first maps of a cache are made."""
    return lock_of_user(f"maps-{content_digest(str(cache.resolve()).encode())}")


def make_maps(
    experiment: "Experiment", store: Store, version: str, look: Look, *, is_shown: bool = True
) -> None:
    """Put the maps of all training images into the cache.

    With `data.on_bad_image: skip` an image that cannot be read gets a map without a foreground, so
    that it is refused as a source.

    Args:
        experiment: Has the images.
        store: Cache that gets the maps.
        version: Version of the maps.
        look: Makes the maps.
        is_shown: Whether to show a progress bar.
    """
    skips = experiment.config.data.on_bad_image == "skip"
    train, side = experiment.splits.train, experiment.saliency.teacher_size
    maps = dict(saliency_maps(train, look, side, skips_bad_images=skips, is_shown=is_shown))
    blank = np.zeros_like(next(iter(maps.values())))
    digests = [source.digest for source in experiment.data.sources]
    entries = {d: encode_map(maps.get(place, blank)) for place, d in enumerate(digests)}
    store.put_saliency(version, entries)


def saliency_maps(
    images: ImageSet, look: Look, side: int, *, skips_bad_images: bool, is_shown: bool = True
) -> Iterator[tuple[int, Float[np.ndarray, "u v"]]]:
    """Yield the index and the map of every image that can be read.

    Args:
        images: Images to look at.
        look: Makes the maps.
        side: Side of the square that `look` gets, px.
        skips_bad_images: Whether to leave out an image that cannot be read.
        is_shown: Whether to show a progress bar.

    Raises:
        BadImageError: If an image cannot be read and is not skipped.
    """
    transform = EvalTransform(frame=Frame(size=side))
    labels = torch.from_numpy(np.asarray(images.labels))
    batches = ordered_batches(images, transform, BATCH_SIZE, skips_bad_images=skips_bad_images)
    with progress("looking for foregrounds", len(images), enabled=is_shown) as bar:
        for batch, places in batches:
            found = look(batch, labels[places]).cpu().numpy()
            yield from zip(places.tolist(), found, strict=True)
            bar.advance(len(batch))


def gaze_of(classifier: nn.Module, device: torch.device | str) -> Look:
    """Return Grad-CAM of a classifier with its present weights; the classifier is not changed."""
    mean, std = input_statistics(classifier)
    looking = quick_copy(classifier)

    def look(images: UInt8[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]) -> Tensor:
        return grad_cam(looking, normalise(images.to(device), mean, std), labels.to(device))

    return look


def check_teacher(experiment: "Experiment") -> None:
    """Refuse a teacher that cannot look at these images, before anything is started or written.

    Raises:
        UserError: If its name is unknown, its file does not hold weights of it for the classes, or
            the classifier being trained cannot look at images of `saliency.image_size`.
    """
    if (
        not experiment.saliency.is_needed
        or experiment.config.saliency.method == "spectral_residual"
    ):
        return
    if experiment.saliency.weights is not None:
        build_teacher(experiment)
        return
    config = experiment.config
    if config.saliency.name is not None:
        raise UserError(
            "saliency.name must be null where saliency.teacher is the classifier being trained, "
            f"got {config.saliency.name!r}"
        )
    is_other_size = experiment.saliency.teacher_size != config.data.image_size
    if is_other_size and sees_one_size(config.classifier.name):
        raise UserError(
            f"saliency.image_size must be null or {config.data.image_size}, the one size that "
            f"{config.classifier.name} takes (data.image_size), got "
            f"{experiment.saliency.teacher_size}"
        )


def build_teacher(experiment: "Experiment") -> nn.Module:
    """Build the model whose weights `saliency.teacher` names, on the CPU.

    Raises:
        UserError: As `check_teacher`.
    """
    config = experiment.config
    if config.saliency.name is not None:
        check_name(config.saliency.name, "saliency.name")
    settings = config.classifier.model_copy(
        update={"name": experiment.saliency.teacher_name, "checkpoint": config.saliency.teacher}
    )
    return build_classifier(
        settings,
        len(experiment.splits.train.class_names),
        image_size=experiment.saliency.teacher_size,
        key="saliency.teacher",
    )


def _first_look(experiment: "Experiment") -> Look:
    if experiment.config.saliency.method == "spectral_residual":
        return lambda images, labels: spectral_residual(images.to(experiment.device))
    return gaze_of(build_teacher(experiment).to(experiment.device), experiment.device)
