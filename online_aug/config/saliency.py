"""The keys of `saliency`: where the foreground of an image is, and how it becomes a mask."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from online_aug.settings import Count, Fraction, Pixels, Section, Text


class SaliencyConfig(Section):
    """The foregrounds of the training images, for methods that use them."""

    method: Literal["diffusion", "masks", "segmenter", "grad_cam", "spectral_residual"] | None = (
        None
    )
    """Where the foregrounds come from: what the image generator itself looks at (`diffusion`), a
    folder of `masks`, a `segmenter`, `grad_cam` of a classifier for the image's own class, or
    `spectral_residual`, which needs no model. Null is `grad_cam` if a `teacher` is named, else
    `diffusion`."""
    mask: Literal["otsu", "grabcut"] | None = None
    """How a map becomes a mask: Otsu's threshold, or GrabCut on the image with that mask as its
    seed. Null is `grabcut` for `diffusion` and `otsu` for the others."""
    prompt: Text | None = None
    """`diffusion`: what the foreground is, such as `a photo of a bird`. Null is that prompt for
    `data.metaclass`; without one, for the image's own class."""
    timesteps: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5,)
    """`diffusion`: how noisy the generator sees an image, as shares of the time steps it was
    trained with; more than one are averaged."""
    draws: Count = 2
    """`diffusion`: draws of noise at each of these; every second one is the negative of the one
    before. An image costs two calls of the network for each."""
    finetuned: bool = False
    """`diffusion`: look with the fine-tuned model and the prompts of its classes. The base model's
    maps serve every fine-tuning, and need none."""
    masks: Path | None = None
    """`masks`: folder with a mask for each training image; null is the folder that the data set
    brings, as pocket_birds does."""
    layout: Literal["mirror", "stretched", "cub", "pets", "voc"] = "mirror"
    """Which mask belongs to an image: `mirror` is the file at the image's own relative path that
    ends in .png; `stretched` the same, stretched to some other shape; `cub`, `pets` and `voc` are
    those of CUB-200-2011's `segmentations/`, of Oxford Pets' `annotations/trimaps/`, and of Pascal
    VOC's `SegmentationObject/`, of which the largest object counts."""
    segmenter: Text | None = None
    """`segmenter`: directory or hub name of a model that transformers loads for image segmentation
    or mask generation, or an ONNX file of U2-Net's form."""
    teacher: Literal["classifier"] | Path | None = None
    """`grad_cam`: the `classifier` in training, or a file of weights; null is the classifier."""
    name: str | None = None
    """timm name of the model in that file; null is `classifier.name`."""
    image_size: Pixels | None = None
    """Side of the square that teacher or segmenter see, px; larger is finer. Null is
    `data.image_size`, or what the segmenter was made for."""
    refresh_epochs: Count = 5
    """Epochs between two versions of the maps if the teacher is the classifier in training."""
    max_version_lag: Annotated[int, Field(ge=0)] = 1
    """Versions by which the maps of a served image may be older than the newest."""

    @property
    def chosen_method(self) -> str:
        """The method, also if none is named."""
        return self.method or ("diffusion" if self.teacher is None else "grad_cam")

    @property
    def chosen_mask(self) -> str:
        """How masks are made, also if it is not named."""
        return self.mask or ("grabcut" if self.chosen_method == "diffusion" else "otsu")

    @property
    def follows_classifier(self) -> bool:
        """Whether the maps come from the classifier in training."""
        return self.chosen_method == "grad_cam" and self.teacher in (None, "classifier")
