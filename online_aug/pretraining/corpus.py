"""The pictures and captions the embedded model learns from."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from online_aug.dataloader.digits import digits_arrays
from online_aug.dataloader.pocket_birds import random_scene, random_species, render
from online_aug.pretraining.captions import bird_caption, digit_caption
from online_aug.seeding import numpy_rng

CAPTIONS_PER_IMAGE = 4


@dataclass(frozen=True)
class Corpus:
    """Pictures with several captions each; `is_digit` tells the two domains apart."""

    images: UInt8[Tensor, "n 3 64 64"]
    coverage: Float[Tensor, "n 1 16 16"]
    """Share of each latent's 4 x 4 pixels that lies on the bird; 0 for digits."""
    captions: list[list[str]]
    is_digit: np.ndarray

    def draw(
        self, size: int, digit_share: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[str]]:
        """Indices and captions of a batch, `digit_share` of it digits."""
        digits, birds = np.flatnonzero(self.is_digit), np.flatnonzero(~self.is_digit)
        count = round(size * digit_share)
        indices = np.concatenate([rng.choice(digits, count), rng.choice(birds, size - count)])
        captions = [str(rng.choice(self.captions[i])) for i in indices]
        return indices, captions


def build_corpus(num_digits: int, num_birds: int, seed: int) -> Corpus:
    """Digits of the training split, moved and turned a little, and birds of random species."""
    rng = numpy_rng("corpus", seed)
    images, masks, captions = [], [], []
    originals, _ = digits_arrays("train")
    for number in tqdm(range(num_digits), desc="digits", unit="img"):
        image = _moved(originals[number % len(originals)], rng)
        images.append(image)
        masks.append(np.zeros(image.shape[:2], np.uint8))
        captions.append([digit_caption(image, rng) for _ in range(CAPTIONS_PER_IMAGE)])
    for _ in tqdm(range(num_birds), desc="birds", unit="img"):
        species, scene = random_species(rng), random_scene(rng)
        for made, kept in zip(render(species, scene), (images, masks), strict=True):
            kept.append(made)
        captions.append([bird_caption(species, scene, rng) for _ in range(CAPTIONS_PER_IMAGE)])
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    coverage = F.avg_pool2d(torch.from_numpy(np.stack(masks))[:, None] / 255, 4)
    return Corpus(stacked, coverage, captions, np.arange(len(images)) < num_digits)


def to_model(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes to the [-1, 1] that Stable Diffusion's autoencoder takes."""
    return images.float() / 127.5 - 1


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = tvf.affine(
        torch.from_numpy(image.copy()).permute(2, 0, 1),
        angle=float(rng.uniform(-8, 8)),
        translate=[int(rng.integers(-4, 5)), int(rng.integers(-3, 4))],
        scale=float(rng.uniform(0.9, 1.1)),
        shear=[float(rng.uniform(-6, 6)), 0.0],
        interpolation=tvf.InterpolationMode.BILINEAR,
    )
    return np.asarray(moved.permute(1, 2, 0))
