"""The keys of `gate`: which generated images are rejected."""

from pathlib import Path
from typing import Literal

from online_aug.settings import Count, Fraction, Pixels, Section


class GateConfig(Section):
    """Rules for generated images; black, white, flat and not finite ones are never used."""

    classifier: Literal["self"] | Path | None = None
    """Weights of a classifier, trained on real images, that judges the class; `self` trains one on
    the training images before any image is made; null judges none."""
    name: str | None = None
    """timm name of the model in that file, or of the one to train; null is `classifier.name`."""
    image_size: Pixels | None = None
    """Side of the square that it sees, px; null is `data.image_size`."""
    path: Path = Path("runs/judges")
    """`self`: folder of the trained judges; later seeds and runs take theirs from it."""
    steps: Count = 300
    """`self`: optimizer steps of the judge's training, 64 images each."""
    shows: Literal["either", "target"] = "either"
    """Class that an image between two must show: that of source or target (`either`), or that of
    the `target`, which the prompt names."""
    min_probability: Fraction = 0.0
    """Least probability of what an image must show, both classes together; 0 is no limit."""
    top_k: Count | None = None
    """One such class must be among this many most probable; SaSPA takes 10. Null is no limit; with
    `self` it is 1 unless `min_probability` is set."""
    clip: Path | None = None
    """Directory of a CLIP model in transformers' format, which judges whether an image shows a
    `data.metaclass` at all (Diff-Mix's filter); null judges none."""
    clip_drop: Fraction = 0.1
    """Reject images with a lower CLIP score than this share of up to 1,000 training images."""

    @property
    def has_rule(self) -> bool:
        """Whether there is a rule for the class."""
        return self.min_probability > 0 or self.rank_limit is not None

    @property
    def rank_limit(self) -> int | None:
        """The rank that is enough, also if none is named; None is no limit."""
        is_free = self.top_k is None and self.min_probability == 0
        return 1 if is_free and self.classifier == "self" else self.top_k

    @property
    def weights(self) -> Path | None:
        """The file of weights that is named; None if none is, or the judge is trained here."""
        return None if self.classifier in (None, "self") else Path(str(self.classifier))
