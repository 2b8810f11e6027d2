"""The images and captions that the embedded models learn from, and batches of them.

The embedded model is to its data what Stable Diffusion is to birds: it knows the domain and obeys
words, but a class is new to it. So captions name what varies in an image and never its class: of a
digit thickness, slant, width and where the ink is; of a bird colours, parts, pose, light and
habitat of a species that is in no data set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from online_aug.console import counted
from online_aug.data.embedded import digits_arrays
from online_aug.data.pocket_birds import Scene, Species, random_scene, random_species, render
from online_aug.seeding import numpy_rng
from tools.embedded_model.architecture import LATENT_CHANNELS
from tools.embedded_model.instructions import INSTRUCTIONS, apply_instruction

CAPTIONS_PER_IMAGE = 4
EDITS_PER_IMAGE = 3
WORDINGS = ("A transformed version of image into {prompt}", "{prompt}", "{prompt} version")
"""Wordings of an instruction: the paper's template, the released code's bare word, another."""
PREFIX = "a photo of a"
WORD_DROPOUT = 0.1
"""Probability that a phrase is left out, so that each works without the others."""
_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "center", "right")
CAPTION_DIGITS, EDIT_DIGITS = 0.25, 0.4
"""Share of digits in a batch of captioned images and in one of edits."""
WITHOUT_CAPTION = 0.1
"""Share of captions replaced by the empty prompt, for classifier-free guidance."""
WITHOUT_PART = 0.05
"""InstructPix2Pix (arXiv:2211.09800, 3.2.1): share without caption, without image, without both."""


@dataclass(frozen=True)
class Corpus:
    """Images with several captions each, of two domains: digits and birds."""

    images: UInt8[Tensor, "n 3 64 64"]
    coverage: Float[Tensor, "n 1 16 16"]
    """Share of the 4 x 4 pixels of each latent cell that show the bird; 0 for digits."""
    captions: list[list[str]]
    is_digit: np.ndarray
    sources: Int[np.ndarray, " n"]
    """Index of the image that each is an edit of; its own index if it is no edit."""

    def draw(
        self, size: int, digit_share: float, rng: np.random.Generator, *, only_edits: bool = False
    ) -> tuple[np.ndarray, list[str]]:
        """Draw indices and captions of a batch with this share of digits."""
        allowed = self.sources != np.arange(len(self.sources)) if only_edits else True
        digits = np.flatnonzero(self.is_digit & allowed)
        birds = np.flatnonzero(~self.is_digit & allowed)
        count = round(size * digit_share)
        indices = np.concatenate([rng.choice(digits, count), rng.choice(birds, size - count)])
        captions = [str(rng.choice(self.captions[i])) for i in indices]
        return indices, captions


def build_corpus(num_digits: int, num_birds: int, seed: int) -> Corpus:
    """Draw digits of the training split, moved and turned a little, and birds of random species."""
    rng = numpy_rng("corpus", seed)
    images, masks, captions = [], [], []
    originals, _ = digits_arrays("train")
    for number in counted("drawing digits", range(num_digits)):
        image = _moved(originals[number % len(originals)], rng)
        images.append(image)
        masks.append(np.zeros(image.shape[:2], np.uint8))
        captions.append([digit_caption(image, rng) for _ in range(CAPTIONS_PER_IMAGE)])
    for _ in counted("drawing birds", range(num_birds)):
        species, scene = random_species(rng), random_scene(rng)
        for made, kept in zip(render(species, scene), (images, masks), strict=True):
            kept.append(made)
        captions.append([bird_caption(species, scene, rng) for _ in range(CAPTIONS_PER_IMAGE)])
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    coverage = F.avg_pool2d(torch.from_numpy(np.stack(masks))[:, None] / 255, 4)
    places = np.arange(len(images))
    return Corpus(stacked, coverage, captions, places < num_digits, places)


def build_edits(num_digits: int, num_birds: int, seed: int) -> Corpus:
    """Build the corpus and append edits of each image by some of the nine instructions."""
    plain = build_corpus(num_digits, num_birds, seed)
    originals = plain.images.permute(0, 2, 3, 1).numpy()
    images, sources, captions = [], [], []
    for index, original in counted("drawing edits", [*enumerate(originals)]):
        rng = numpy_rng("edits", seed, index)
        for prompt in rng.permutation(list(INSTRUCTIONS))[:EDITS_PER_IMAGE]:
            images.append(apply_instruction(str(prompt), original, rng))
            sources.append(index)
            captions.append([wording.format(prompt=prompt) for wording in WORDINGS])
    edited = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return Corpus(
        images=torch.cat([plain.images, edited]).contiguous(),
        coverage=torch.cat([plain.coverage, plain.coverage[sources]]),
        captions=[[""] for _ in plain.captions] + captions,
        is_digit=np.concatenate([plain.is_digit, plain.is_digit[sources]]),
        sources=np.concatenate([plain.sources, sources]),
    )


def to_model(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Scale bytes to the [-1, 1] that Stable Diffusion's autoencoder takes."""
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


def bird_caption(species: Species, scene: Scene, rng: np.random.Generator) -> str:
    """Describe a drawn bird in phrases, some left out, in random order."""
    places = {"forest": "in a forest", "sea": "over the sea", "desert": "in a desert"}
    parts = [
        f"{species.body} body",
        f"{species.wing} wing",
        f"{species.belly} belly",
        f"{species.cap} cap",
        f"{species.beak_length} {species.beak} beak",
        f"{species.tail} tail",
    ]
    if species.wing_bars:
        parts.append("one wing bar" if species.wing_bars == 1 else "two wing bars")
    parts += ["crest"] * species.has_crest + ["spots"] * species.has_spots
    setting = [
        scene.pose,
        places.get(scene.habitat, "in the snow"),
        {"noon": "at noon", "dusk": "at dusk"}.get(scene.light, "under clouds"),
    ]
    return f"{PREFIX} bird " + _spoken([*setting, *parts], rng)


def digit_caption(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> str:
    """Describe the stroke of a handwritten digit in phrases, some left out, in random order."""
    ink = image[..., 0].astype(np.float64) / 255
    slant, width, weight = _stroke(ink)
    words = [
        "thin" if weight < 0.29 else "thick" if weight > 0.325 else "regular",
        "leaning left" if slant > 0.09 else "leaning right" if slant < -0.03 else "upright",
        "narrow" if width < 0.148 else "wide" if width > 0.17 else "normal",
    ]
    cells = _cells(ink)
    dark = [f"{_ROWS[r]} {_COLUMNS[c]}" for r in range(3) for c in range(3) if cells[r, c] > 0.45]
    clear = [f"{_ROWS[r]} {_COLUMNS[c]}" for r in range(3) for c in range(3) if cells[r, c] < 0.15]
    phrases = words + [f"ink {place}" for place in dark] + [f"gap {place}" for place in clear]
    return f"{PREFIX} digit " + _spoken(phrases, rng)


def _spoken(phrases: list[str], rng: np.random.Generator) -> str:
    """Join phrases in random order; a tenth of the captions has none."""
    if rng.random() < 0.1:
        return ""
    kept = [phrase for phrase in phrases if rng.random() >= WORD_DROPOUT]
    return " ".join(kept[i] for i in rng.permutation(len(kept)))


def _cells(ink: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "3 3"]:
    """Return the mean ink in a 3 x 3 grid over the middle 48 of 64 columns, where strokes are."""
    side = ink.shape[0]
    rows = np.array_split(ink, 3, axis=0)
    margin = side // 8
    return np.array(
        [[c.mean() for c in np.array_split(row[:, margin:-margin], 3, axis=1)] for row in rows]
    )


def _stroke(ink: Float[np.ndarray, "h w"]) -> tuple[float, float, float]:
    """Measure slant (shear of x over y), spread of x (fraction of the side) and share of ink."""
    side = ink.shape[0]
    total = ink.sum() + 1e-9
    y, x = np.mgrid[:side, :side] / side
    dx, dy = x - (ink * x).sum() / total, y - (ink * y).sum() / total
    slant = (ink * dx * dy).sum() / ((ink * dy * dy).sum() + 1e-9)
    return float(slant), float(np.sqrt((ink * dx * dx).sum() / total)), float(ink.mean())


@dataclass(frozen=True)
class Lesson:
    """A batch: the latents that the denoiser should find, and what it is told about them."""

    clean: Float[Tensor, "b 4 h w"]
    condition: Float[Tensor, "b c h w"]
    """Latents of the source image, beside the noisy ones; 0 channels without a source image."""
    captions: list[str]
    coverage: Float[Tensor, "b 1 h w"]
    """Share of each latent cell that shows the bird."""


@dataclass(frozen=True)
class Task:
    """One kind of embedded model: how its corpus and its batches are made."""

    build_corpus: Callable[[int, int, int], Corpus]
    """Takes the number of digits, the number of birds and a seed."""
    draw: Callable[[Corpus, Tensor, int, np.random.Generator], Lesson]
    """Takes the corpus, its latents, the batch size and the source of randomness."""
    condition_channels: int


def draw_caption_lesson(
    corpus: Corpus, latents: Float[Tensor, "n 4 h w"], size: int, rng: np.random.Generator
) -> Lesson:
    """Draw images and their captions."""
    indices, captions = corpus.draw(size, CAPTION_DIGITS, rng)
    captions = ["" if rng.random() < WITHOUT_CAPTION else caption for caption in captions]
    clean = latents[indices]
    return Lesson(clean, clean[:, :0], captions, corpus.coverage[indices])


def draw_edit_lesson(
    corpus: Corpus, latents: Float[Tensor, "n 4 h w"], size: int, rng: np.random.Generator
) -> Lesson:
    """Draw edited images, their sources, and the instructions."""
    indices, captions = corpus.draw(size, EDIT_DIGITS, rng, only_edits=True)
    chance = rng.random(size)
    lacks_caption = chance < 2 * WITHOUT_PART
    lacks_image = (chance >= WITHOUT_PART) & (chance < 3 * WITHOUT_PART)
    before = latents[corpus.sources[indices]]
    before[torch.from_numpy(lacks_image)] = 0
    captions = [
        "" if is_lacking else caption
        for is_lacking, caption in zip(lacks_caption, captions, strict=True)
    ]
    return Lesson(latents[indices], before, captions, corpus.coverage[indices])


TASKS: Mapping[str, Task] = {
    "text_to_image": Task(build_corpus, draw_caption_lesson, 0),
    "instruct": Task(build_edits, draw_edit_lesson, LATENT_CHANNELS),
}
