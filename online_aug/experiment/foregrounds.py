"""Make the foregrounds of the training images and keep them in the cache.

Maps come first, then, with `saliency.mask: grabcut`, the masks that GrabCut cuts from each image by
its map. Both are stored batch by batch, so a run that was interrupted goes on where it stopped.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from cache import Store, content_digest
from online_aug.console import progress
from online_aug.data.image_sets import ImageSet, Subset, ordered_batches
from online_aug.data.transforms import EvalTransform, Frame
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.saliency import Viewer, cut_size_of, parts_of, viewer_of
from online_aug.files import alone, lock_of_user
from online_aug.loader.pool import open_store
from online_aug.saliency import grab_cut, otsu_masks, upscaled
from online_aug.saliency.maps import decode_map, encode_map
from online_aug.saliency.masks import encode_mask, is_fallback

_LOG = logging.getLogger(__name__)
_CUTS_AT_ONCE = 64
_CUT_THREADS = 8
Maps = Mapping[int, Float[np.ndarray, "u v"]]
"""Maps by the index of their image."""


def ensure_saliency(experiment: Experiment) -> None:
    """Make the foregrounds that planning needs, unless the cache holds them.

    If several processes share a cache, such as the ranks of a node, one makes them and the others
    wait.

    Raises:
        UserError: If what makes the maps cannot be used, or an image cannot be read.
        CacheError: If the cache cannot be written.
    """
    if experiment.has_maps:
        return
    version = experiment.saliency.version
    if version is None:
        return
    with alone(maps_lock(experiment.config.cache.path)):
        if not experiment.has_maps:
            with open_store(experiment.config, experiment.splits.train) as store:
                make_foregrounds(experiment, store, version)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what looked at the images is gone


def maps_lock(cache: Path) -> Path:
    """Return the lock that is held while the first maps of a cache are made."""
    return lock_of_user(f"maps-{content_digest(str(cache.resolve()).encode())}")


def make_foregrounds(
    experiment: Experiment,
    store: Store,
    version: str,
    viewer: Viewer | None = None,
    *,
    is_shown: bool = True,
) -> None:
    """Put the foregrounds of all training images into the cache, as far as it lacks them.

    With `data.on_bad_image: skip` an image that cannot be read has no foreground, so that it is
    refused as a source.

    Args:
        experiment: Has the images.
        store: Cache that gets the foregrounds.
        version: Version of the foregrounds.
        viewer: Looks at the images; None loads what the experiment asks for.
        is_shown: Whether to show a progress bar.
    """
    map_version, *cut_version = parts_of(version)
    if places := _missing(experiment, store, map_version):
        made = made_maps(experiment, viewer, places, is_shown=is_shown)
        _keep_maps(experiment, store, map_version, places, made)
    if cut_version and (places := _missing(experiment, store, version)):
        _make_masks(experiment, store, version, places, is_shown=is_shown)


def _missing(experiment: Experiment, store: Store, version: str) -> list[int]:
    """List an image of each content of which the cache has nothing under a version."""
    places = experiment.data.places
    digests = experiment.data.digests
    return sorted(places[d] for d in digests if store.get_saliency(version, d) is None)


def made_maps(
    experiment: Experiment, viewer: Viewer | None, places: Sequence[int], *, is_shown: bool
) -> Iterator[Maps]:
    """Yield the maps of training images by their indices, a batch at a time."""
    if viewer is None and experiment.saliency.method == "masks":
        yield from experiment.saliency.mask_files.maps(places, is_shown=is_shown)
        return
    skips = experiment.config.data.on_bad_image == "skip"
    images = Subset(experiment.splits.train, np.array(places))
    viewer = viewer or viewer_of(experiment)
    for found in saliency_maps(images, viewer, skips_bad_images=skips, is_shown=is_shown):
        yield {places[number]: values for number, values in found.items()}


def _keep_maps(
    experiment: Experiment,
    store: Store,
    version: str,
    places: Sequence[int],
    made: Iterator[Maps],
) -> None:
    digests = {place: experiment.data.sources[place].digest for place in places}
    constant = 0
    for found in made:
        constant += sum(values.min() == values.max() for values in found.values())
        entries = {digests[place]: encode_map(values) for place, values in found.items()}
        store.put_saliency(version, entries)
    if constant:
        _LOG.warning(
            "%d of %d saliency maps are constant: these images have no foreground",
            constant,
            len(places),
        )
    if bad := [
        digest for digest in digests.values() if store.get_saliency(version, digest) is None
    ]:
        blank = _blank_map(experiment, store, version)
        store.put_saliency(version, dict.fromkeys(bad, blank))


def _blank_map(experiment: Experiment, store: Store, version: str) -> bytes:
    for digest in experiment.data.digests:
        if (content := store.get_saliency(version, digest)) is not None:
            return encode_map(np.zeros_like(decode_map(content)))
    raise UserError("data.source must hold training images that can be read, got none")


def saliency_maps(
    images: ImageSet, viewer: Viewer, *, skips_bad_images: bool, is_shown: bool = True
) -> Iterator[Maps]:
    """Yield the maps of every image that can be read by its index, a batch at a time.

    Args:
        images: Images to look at.
        viewer: Looks at them.
        skips_bad_images: Whether to leave out an image that cannot be read.
        is_shown: Whether to show a progress bar.

    Raises:
        BadImageError: If an image cannot be read and is not skipped.
    """
    transform = EvalTransform(frame=Frame(size=viewer.side))
    labels = torch.from_numpy(np.asarray(images.labels))
    batches = ordered_batches(
        images, transform, viewer.batch_size, skips_bad_images=skips_bad_images
    )
    with progress("looking for foregrounds", len(images), enabled=is_shown) as bar:
        for batch, places in batches:
            found = viewer.look(batch, labels[places]).float().cpu().numpy()
            yield dict(zip(places.tolist(), found, strict=True))
            bar.advance(len(batch))


def _make_masks(
    experiment: Experiment, store: Store, version: str, places: Sequence[int], *, is_shown: bool
) -> None:
    map_version, side = parts_of(version)[0], cut_size_of(version)
    digests = [experiment.data.sources[place].digest for place in places]
    maps = [decode_map(store.get_saliency(map_version, digest) or b"") for digest in digests]
    skips = experiment.config.data.on_bad_image == "skip"
    batches = ordered_batches(
        Subset(experiment.splits.train, np.array(places)),
        EvalTransform(frame=Frame(size=side)),
        _CUTS_AT_ONCE,
        skips_bad_images=skips,
    )
    with (
        progress("cutting out foregrounds", len(places), enabled=is_shown) as bar,
        ThreadPoolExecutor(_CUT_THREADS) as pool,
    ):
        for batch, found in batches:
            images = batch.permute(0, 2, 3, 1).numpy()
            masks = pool.map(cut_out, images, (maps[place] for place in found.tolist()))
            entries = dict(zip((digests[place] for place in found.tolist()), masks, strict=True))
            store.put_saliency(version, entries)
            bar.advance(len(batch))
    blank = encode_mask(np.zeros((side, side), np.bool_), is_fallback=False)
    bad = [digest for digest in digests if store.get_saliency(version, digest) is None]
    store.put_saliency(version, dict.fromkeys(bad, blank))
    _tell_fallbacks(experiment, store, version)


def cut_out(image: UInt8[np.ndarray, "s s 3"], values: Float[np.ndarray, "u v"]) -> bytes:
    """Return the encoded foreground of an image by GrabCut, or by Otsu if that finds none.

    Args:
        image: The image.
        values: Its saliency map.
    """
    large = upscaled(torch.from_numpy(values)[None], image.shape[:2])
    mask: Bool[np.ndarray, "s s"] | None = grab_cut(image, large[0].numpy())
    if mask is not None:
        return encode_mask(mask, is_fallback=False)
    return encode_mask(otsu_masks(large)[0].numpy(), is_fallback=True)


def count_fallbacks(experiment: Experiment, store: Store, version: str) -> int:
    """Count the images whose mask is Otsu's because GrabCut found none."""
    stored = (store.get_saliency(version, digest) for digest in experiment.data.digests)
    return sum(is_fallback(content) for content in stored if content is not None)


def _tell_fallbacks(experiment: Experiment, store: Store, version: str) -> None:
    if count := count_fallbacks(experiment, store, version):
        total = len(experiment.data.digests)
        _LOG.warning(
            "GrabCut found no foreground in %d of %d images: Otsu's mask is taken", count, total
        )
