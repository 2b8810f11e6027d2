"""The part of the configuration that says which generated images are fit to be used."""

from pathlib import Path

from online_aug.config_types import Count, Fraction, Pixels, Section


class GateConfig(Section):
    """Which generated images are used; black, white, flat and not finite ones never are."""

    classifier: Path | None = None
    """Weights of a classifier trained on real images, which judges the class; null judges none."""
    name: str | None = None
    """timm name of the model in that file; null is `classifier.name`."""
    image_size: Pixels | None = None
    """Side of the square it looks at, px; null is `data.image_size`."""
    min_probability: Fraction = 0.0
    """Least probability of the classes in the label together (source, target); 0 is no limit."""
    top_k: Count | None = None
    """One class of the label must be among this many most probable; null is no limit; SaSPA: 10."""
    clip: Path | None = None
    """Directory of a CLIP model in transformers' format, which is asked whether an image shows a
    `data.metaclass` at all (Diff-Mix's filter); null asks none."""
    clip_drop: Fraction = 0.1
    """Images are dropped that CLIP scores below this part of up to 1,000 training images."""

    @property
    def has_rule(self) -> bool:
        """A class is asked for."""
        return self.min_probability > 0 or self.top_k is not None
