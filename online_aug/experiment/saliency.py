"""The saliency maps of an experiment: the version it plans with, and what its cache holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cache import Store, cache_exists
from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.methods import find_method
from online_aug.saliency import SaliencyTable
from online_aug.saliency.maps import file_version, read_maps, spectral_version


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
                "start train.py once to make them"
            )
        return SaliencyTable.from_maps(version, maps)

    def _maps(self, version: str, digests: Sequence[str]) -> dict[str, Float[np.ndarray, "u v"]]:
        with Store(self.config.cache.path, readonly=True) as store:
            return read_maps(store.get_saliency, version, digests)
