"""Which foregrounds an experiment needs: where they come from, their versions, and their table.

A version names everything that decides a map but the image, so the cache keeps maps by version and
image, and they serve every run, seed and method that asks for the same. `foregrounds.py` makes and
stores them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from cache import Store, cache_exists
from online_aug.classifier.model import (
    REFUSALS,
    build_classifier,
    check_name,
    create,
    input_statistics,
    sees_one_size,
)
from online_aug.config.sections import ClassifierConfig
from online_aug.data.transforms import normalise
from online_aug.errors import UserError, first_line
from online_aug.experiment.mask_files import MaskFiles
from online_aug.saliency import SaliencyTable, grad_cam, quick_copy, spectral_residual
from online_aug.saliency.maps import file_version, read_maps, spectral_version
from online_aug.saliency.masks import decode_mask
from online_aug.seeding import torch_global_state
from online_aug.settings import decided

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment

LARGEST_CUT_PX = 256
"""Largest side at which GrabCut works."""
_CUT = "+grabcut-"
Look = Callable[[UInt8[Tensor, "b 3 s s"], Int[Tensor, " b"]], Float[Tensor, "b u v"]]
"""From uint8 images and their classes to maps in [0, 1]."""


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

    @property
    def cut_size(self) -> int:
        """Side of the square that GrabCut works on, px."""
        return min(LARGEST_CUT_PX, decided(self.experiment.config.generation.resolution))

    @property
    def is_known(self) -> bool:
        """Whether the version can be known by now; that of a generator needs its fine-tuning."""
        return self.method != "diffusion" or self.experiment.diffusion.is_ready

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
                return diffusion_version(self.experiment)
            case "masks":
                return self.mask_files.version
            case _:
                return _teacher_version(self)

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
            return _diffusion_viewer(experiment)
        case _:
            classifier = build_teacher(experiment).to(experiment.device)
            return viewer_by(experiment, classifier, experiment.device)


# The generator's own maps come here: one branch each in `viewer_of`, `map_version` and
# `check_saliency`, and these two functions.


def diffusion_version(experiment: "Experiment") -> str:
    """Name the maps that the generator of an experiment makes."""
    raise UserError(_NO_DIFFUSION)


def _diffusion_viewer(experiment: "Experiment") -> Viewer:
    raise UserError(_NO_DIFFUSION)


_NO_DIFFUSION = (
    "saliency.method must be grad_cam or spectral_residual, got diffusion, which is not built yet"
)


def viewer_by(
    experiment: "Experiment", classifier: nn.Module, device: torch.device | str
) -> Viewer:
    """Return Grad-CAM of a classifier at the size that the experiment asks for."""
    return Viewer(gaze_of(classifier, device), experiment.saliency.teacher_size)


def gaze_of(classifier: nn.Module, device: torch.device | str) -> Look:
    """Return Grad-CAM of a classifier with its present weights; the classifier is not changed."""
    mean, std = input_statistics(classifier)
    looking = quick_copy(classifier)

    def look(images: UInt8[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]) -> Tensor:
        return grad_cam(looking, normalise(images.to(device), mean, std), labels.to(device))

    return look


def check_saliency(experiment: "Experiment") -> None:
    """Refuse foregrounds that could not be made, before anything is started or written.

    Raises:
        UserError: If masks are missing or cannot be used, a teacher's name is unknown, its file
            does not hold weights of it for the classes, or the classifier being trained cannot look
            at images of `saliency.image_size`.
    """
    if not experiment.saliency.is_needed:
        return
    match experiment.saliency.method:
        case "spectral_residual":
            return
        case "diffusion":
            diffusion_version(experiment)
        case "masks":
            if not experiment.has_maps:  # those in the cache were checked before they were made
                experiment.saliency.mask_files.check()
        case _ if experiment.saliency.weights is not None:
            build_teacher(experiment)
            _check_view(experiment)
        case _:
            _check_classifier(experiment)


def _check_classifier(experiment: "Experiment") -> None:
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
    _check_view(experiment)


def _check_view(experiment: "Experiment") -> None:
    """Raise if Grad-CAM cannot be made of the classifier that is to look, by trying."""
    side = experiment.saliency.teacher_size
    bare: dict[str, object] = {"pretrained": False, "checkpoint": None}
    settings = experiment.saliency.teacher_settings.model_copy(update=bare)
    problem = ""
    for device in ("meta", "cpu"):  # only some networks need values for it
        try:
            with torch.device(device), torch_global_state(0):
                images = torch.linspace(-1, 1, 2 * 3 * side**2).view(2, 3, side, side)
                network = create(settings, len(experiment.splits.train.class_names), side)
                grad_cam(network, images, torch.tensor([0, 0]))
        except (*REFUSALS, LookupError, NotImplementedError) as error:
            problem = first_line(error)
        else:
            return
    raise UserError(
        f"saliency.method must be another than grad_cam for {settings.name} at {side} px, of "
        f"which no map can be made: {problem}"
    )


def build_teacher(experiment: "Experiment") -> nn.Module:
    """Build the model whose weights `saliency.teacher` names, on the CPU.

    Raises:
        UserError: As `check_saliency`.
    """
    config = experiment.config
    if config.saliency.name is not None:
        check_name(config.saliency.name, "saliency.name")
    return build_classifier(
        experiment.saliency.teacher_settings,
        len(experiment.splits.train.class_names),
        image_size=experiment.saliency.teacher_size,
        key="saliency.teacher",
        needs_head=True,
    )


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
