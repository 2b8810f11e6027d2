"""Making the saliency maps of an experiment's training images.

A version names everything that decides a map but the image. So the cache keeps maps by version and
image, and they serve every run, seed and method that asks for the same.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from cache import Store, content_digest
from online_aug.classifier.model import (
    build_classifier,
    check_name,
    input_statistics,
    sees_one_size,
)
from online_aug.console import progress
from online_aug.data.image_sets import ImageSet, ordered_batches
from online_aug.data.transforms import EvalTransform, Frame, normalise
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.files import alone, lock_of_user
from online_aug.loader.pool import open_store
from online_aug.saliency import grad_cam, quick_copy, spectral_residual
from online_aug.saliency.maps import encode_map

BATCH_SIZE = 64
Look = Callable[[UInt8[Tensor, "b 3 s s"], Int[Tensor, " b"]], Float[Tensor, "b u v"]]
"""From uint8 images and their classes to maps in [0, 1]."""


def ensure_saliency(experiment: Experiment) -> None:
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
    experiment: Experiment, store: Store, version: str, look: Look, *, is_shown: bool = True
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


def check_teacher(experiment: Experiment) -> None:
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


def build_teacher(experiment: Experiment) -> nn.Module:
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


def _first_look(experiment: Experiment) -> Look:
    if experiment.config.saliency.method == "spectral_residual":
        return lambda images, labels: spectral_residual(images.to(experiment.device))
    return gaze_of(build_teacher(experiment).to(experiment.device), experiment.device)
