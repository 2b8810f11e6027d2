"""Denoise noised images with a trained model and keep every state on the way, to distil it from.

There is no guidance, so that it can be chosen when images are made (docs/LOG.md).
A state is a noisy latent at its time step; what it should lead to is the clean latent at which its
trajectory ends. One trajectory so gives as many examples as it has steps, and each is exact.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from online_aug.console import counted
from online_aug.diffusion.directory import scheduler_settings
from online_aug.diffusion.loading import load_img2img
from online_aug.generation.denoiser import Conditions, Denoiser
from online_aug.generation.solver_tables import Step
from online_aug.generation.solvers import Solver, advance, nothing_before
from online_aug.seeding import numpy_rng, torch_rng
from tools.embedded_model.architecture import MAX_TOKENS
from tools.embedded_model.corpus import Corpus, build_corpus
from tools.embedded_model.training import Settings, latents_of

BATCH_SIZE = 32
SOLVER = "dpmsolver++"
LEAST_STEPS, MOST_STEPS = 11, 15
"""Steps of a whole trajectory; several numbers, so that states are at many time steps."""
FROM_NOISE = 0.4
"""Share of trajectories that begin at noise alone; the others begin at a noised image."""
OWN_CAPTION = 0.25
"""Share of images that are denoised with a caption of their own, not with one of another image."""
DIGIT_SHARE = 0.5
FIRST_TIMESTEP = 80
"""States at earlier time steps are left out: few steps begin at none of them."""


class Teacher:
    """A trained model as the generation process runs it, without guidance."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load the model of a folder and put it on a device."""
        pipeline = load_img2img(folder, "float32").to(device)
        self.vae: AutoencoderKL = pipeline.vae
        self._tokenizer: CLIPTokenizer = pipeline.tokenizer
        self._text_encoder: CLIPTextModel = pipeline.text_encoder
        self._solver = Solver(SOLVER, scheduler_settings(folder))
        self._device = device
        self._denoiser = Denoiser(pipeline, self.embed([""])[0], "graph")

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Float[Tensor, "b t d"]:
        """Embed captions."""
        tokens = self._tokenizer(
            captions,
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        embedded: Tensor = self._text_encoder(tokens.input_ids.to(self._device))[0]
        return embedded

    def denoise(
        self,
        clean: Float[Tensor, "b 4 h w"],
        captions: list[str],
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Noise images to a random strength, denoise them, and return the states and the end."""
        whole = int(rng.integers(LEAST_STEPS, MOST_STEPS + 1))
        fewest = -(-whole * FIRST_TIMESTEP // 1000) + 1
        steps = whole if rng.random() < FROM_NOISE else int(rng.integers(fewest, whole + 1))
        way = self._solver.from_image(whole, steps / whole + 1e-9)
        noise = torch.randn(clean.shape, generator=torch_rng(int(rng.integers(2**31))))
        latents = (way.start_image * clean + way.start_noise * noise).to(self._device)
        words = self.embed(captions)
        unguided = torch.ones(len(clean))
        given = Conditions(words, None, unguided, unguided)
        previous, states = nothing_before(latents), []
        for row in way.rows:
            step = Step(*row)
            states.append(latents)
            times = step.timestep.expand(len(latents)).to(self._device)
            output = self._denoiser(latents, times, given, is_guided=False)
            latents, previous = advance(step, latents, output, previous, previous[0])
        is_kept = way.rows[:, 2] >= FIRST_TIMESTEP
        return {
            "states": torch.stack(states)[is_kept].half().cpu(),
            "times": way.rows[is_kept, 2].long(),
            "ends": latents.half().cpu(),
            "words": words.half().cpu(),
        }


def draw_trajectories(
    teacher: Teacher, corpus: Corpus, latents: Tensor, size: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Denoise a batch of images of the corpus, mostly with captions of other images.

    A digit is led to another digit and a bird to another bird, as a recipe does.
    """
    indices, own = corpus.draw(size, DIGIT_SHARE, rng)
    _, others = corpus.draw(size, DIGIT_SHARE, rng)
    is_own = rng.random(size) < OWN_CAPTION
    captions = [a if kept else b for a, b, kept in zip(own, others, is_own, strict=True)]
    return teacher.denoise(latents[indices], captions, rng)


def write_trajectories(model: Path, settings: Settings) -> Path:
    """Let a model denoise as many images as are still lacking; return the folder of all."""
    folder = settings.work / "trajectories"
    folder.mkdir(exist_ok=True)
    numbers = range(-(-settings.trajectories // BATCH_SIZE))
    if lacking := [number for number in numbers if not path_of(folder, number).exists()]:
        teacher = Teacher(model, settings.device)
        corpus = build_corpus(settings.digits, settings.birds, settings.seed)
        latents = latents_of(corpus, teacher.vae, settings)
        for number in counted("trajectories", lacking):
            rng = numpy_rng("trajectories", settings.seed, number)
            made = draw_trajectories(teacher, corpus, latents, BATCH_SIZE, rng)
            partial = folder / "partial"
            save_file({name: tensor.contiguous() for name, tensor in made.items()}, partial)
            partial.replace(path_of(folder, number))
    return folder


def path_of(folder: Path, number: int) -> Path:
    """Return the path of a batch of trajectories."""
    return folder / f"{number:04d}.safetensors"
