"""Which foregrounds an experiment needs: where they come from, their versions, and their table.

A version names everything that decides a map but the image, so the cache keeps maps by version and
image, and they serve every run, seed and method that asks for the same. `foregrounds.py` makes and
stores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn

from cache import Store, cache_exists
from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError
from online_aug.experiment.generator_maps import GeneratorMaps
from online_aug.experiment.mask_files import MaskFiles
from online_aug.experiment.saliency_models import (
    Look,
    build_segmenter,
    build_teacher,
    check_classifier_looks,
    check_view,
    find_segmenter,
    gaze_of,
)
from online_aug.saliency import SaliencyTable, spectral_residual
from online_aug.saliency.maps import file_version, read_maps, spectral_version
from online_aug.saliency.masks import decode_mask
from online_aug.saliency.segmenter import segmenter_digest

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

CUT_PX = 256
"""Side at which GrabCut works: of small images, not enlarged, it shaves off thin parts."""
_CUT = "+grabcut-"


class Viewer(NamedTuple):
    """Something that looks at images."""

    look: Look
    side: int
    """Side of the square that it sees, px."""
    batch_size: int = 64


@dataclass(frozen=True)
class ExperimentSaliency:
    """The foregrounds that a configuration needs."""

    experiment: "Experiment"

    @property
    def is_needed(self) -> bool:
        """Whether a method needs to know where the foregrounds are."""
        return self.experiment.config.uses_saliency

    @property
    def method(self) -> str:
        """Name of what makes the maps, as in `saliency.method`."""
        return self.experiment.config.saliency.chosen_method

    @property
    def follows_classifier(self) -> bool:
        """Whether the maps, and so the requests, come from the classifier being trained."""
        return self.is_needed and self.experiment.config.saliency.follows_classifier

    @property
    def weights(self) -> Path | None:
        """File of the teacher's weights; None if the maps do not come from such a file."""
        saliency = self.experiment.config.saliency
        is_asked = saliency.chosen_method == "grad_cam" and isinstance(saliency.teacher, Path)
        return Path(str(saliency.teacher)) if is_asked else None

    @property
    def teacher_settings(self) -> ClassifierConfig:
        """Name, weights and input statistics of the model that looks at the images."""
        config = self.experiment.config
        return config.classifier.helper(config.saliency.name, self.weights)

    @property
    def teacher_size(self) -> int:
        """Side of the square that the teacher looks at, px."""
        config = self.experiment.config
        return config.saliency.image_size or config.data.image_size

    @cached_property
    def by_generator(self) -> GeneratorMaps:
        """The maps that the generator itself makes."""
        return GeneratorMaps(self.experiment)

    @property
    def cut_size(self) -> int:
        """Side of the square that GrabCut works on, px."""
        return CUT_PX

    @property
    def is_known(self) -> bool:
        """Whether the version can be known by now; a fine-tuned generator has to be made first."""
        return self.method != "diffusion" or self.by_generator.is_known

    @cached_property
    def map_version(self) -> str | None:
        """Version of the maps; None if none are needed, or they follow the classifier in training.

        Raises:
            UserError: If what makes the maps cannot be read.
        """
        if not self.is_needed or self.follows_classifier:
            return None
        match self.method:
            case "spectral_residual":
                return spectral_version(self.teacher_size)
            case "diffusion":
                return self.by_generator.version
            case "masks":
                return self.mask_files.version
            case "segmenter":
                seen = self.experiment.config.saliency.image_size or "own"
                return f"segmenter-{seen}-{segmenter_digest(self.segmenter)}"
            case _:
                return _teacher_version(self)

    @cached_property
    def segmenter(self) -> Path:
        """Directory or ONNX file of the segmenter; fetched if it is a name of the hub.

        Raises:
            UserError: If there is none.
        """
        return find_segmenter(self.experiment.config.saliency.segmenter or "")

    @cached_property
    def mask_files(self) -> MaskFiles:
        """The mask files of the training images."""
        return MaskFiles(self.experiment.config, self.experiment.splits.train)

    @cached_property
    def version(self) -> str | None:
        """Version of the foregrounds, which requests name; None as `map_version`."""
        return self.map_version and self.version_of(self.map_version)

    def version_of(self, map_version: str) -> str:
        """Return the version of the foregrounds that are cut from maps of a version."""
        is_cut = self.experiment.config.saliency.chosen_mask == "grabcut"
        return f"{map_version}{_CUT}{self.cut_size}" if is_cut else map_version

    def is_complete(self, digests: Sequence[str]) -> bool:
        """Return whether no foregrounds of these images are left to make before the start."""
        if not self.is_needed or self.follows_classifier:
            return True
        if not self.is_known or not cache_exists(self.experiment.config.cache.path):
            return False
        with Store(self.experiment.config.cache.path, readonly=True) as store:
            return all(
                store.get_saliency(version, digest) is not None
                for version in parts_of(self.version or "")
                for digest in digests
            )

    def table(self, version: str, digests: Sequence[str]) -> SaliencyTable:
        """Return the foregrounds of one version, for all of these images.

        Raises:
            UserError: If the cache does not hold all of them.
        """
        map_version, *cut_version = parts_of(version)
        cache = self.experiment.config.cache.path
        masks: dict[str, Bool[np.ndarray, "s s"]] | None = None
        with Store(cache, readonly=True) as store:
            maps = read_maps(store.get_saliency, map_version, digests)
            if cut_version:
                found = ((digest, store.get_saliency(version, digest)) for digest in digests)
                masks = {digest: decode_mask(mask) for digest, mask in found if mask is not None}
        if len(maps) < len(digests) or (masks is not None and len(masks) < len(digests)):
            raise UserError(
                f"cache {cache} must hold the saliency maps {version} of all "
                f"{len(digests)} training images, has {len(maps if masks is None else masks)}; "
                "run online-aug train once to make them"
            )
        return SaliencyTable.from_maps(version, maps, masks)


def parts_of(version: str) -> tuple[str, ...]:
    """Return the versions under which the cache keeps foregrounds: of maps, and of their masks."""
    maps, is_cut, _ = version.partition(_CUT)
    return (maps, version) if is_cut else (maps,)


def cut_size_of(version: str) -> int:
    """Return the side of the masks of a version that has some, px."""
    return int(version.partition(_CUT)[2])


def viewer_of(experiment: "Experiment") -> Viewer:
    """Return what looks at the images to make the maps that are needed before the start.

    Raises:
        UserError: If it cannot be loaded.
    """
    match experiment.saliency.method:
        case "spectral_residual":
            side = experiment.saliency.teacher_size
            return Viewer(lambda images, _: spectral_residual(images.to(experiment.device)), side)
        case "diffusion":
            look, batch_size = experiment.saliency.by_generator.load()
            return Viewer(look, experiment.saliency.by_generator.side, batch_size)
        case "segmenter":
            call, side = build_segmenter(experiment)
            return Viewer(lambda images, _: call(images), side, batch_size=8)
        case _:
            classifier = build_teacher(experiment).to(experiment.device)
            return viewer_by(experiment, classifier, experiment.device)


def viewer_by(
    experiment: "Experiment", classifier: nn.Module, device: torch.device | str
) -> Viewer:
    """Return Grad-CAM of a classifier at the size that the experiment asks for."""
    return Viewer(gaze_of(classifier, device), experiment.saliency.teacher_size)


def check_saliency(experiment: "Experiment") -> None:
    """Refuse foregrounds that could not be made, before anything is started or written.

    Raises:
        UserError: If masks or a segmenter cannot be used, the generator cannot tell the foreground,
            a teacher's name is unknown, its file does not hold weights of it for the classes, or
            the classifier being trained cannot look at images of `saliency.image_size`.
    """
    if experiment.has_maps and not experiment.saliency.follows_classifier:
        return  # none are needed, or what made those in the cache was checked before
    match experiment.saliency.method:
        case "spectral_residual":
            pass
        case "diffusion":
            experiment.saliency.by_generator.check()
        case "segmenter":
            build_segmenter(experiment)
        case "masks":
            experiment.saliency.mask_files.check()
        case _ if experiment.saliency.weights is not None:
            build_teacher(experiment)
            check_view(experiment)
        case _:
            check_classifier_looks(experiment)


def _teacher_version(saliency: ExperimentSaliency) -> str | None:
    if saliency.weights is None:
        return None
    try:
        name = saliency.teacher_settings.name + saliency.teacher_settings.statistics
        return file_version(saliency.weights, name, saliency.teacher_size)
    except OSError as error:
        raise UserError(
            f"saliency.teacher must be a file of weights, cannot read {saliency.weights}: "
            f"{error.strerror}"
        ) from None
