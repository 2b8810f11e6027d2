"""Foregrounds by the image generator itself: where its prompt changes what it sees in an image.

Noise is added to a clean image, and the network predicts it with the prompt and without. It
predicts otherwise where the prompt's object is (DiffEdit, arXiv:2210.11427). That difference is
coarse and noisy, so it is shared out among places that look alike to the network's decoder: its
features say which places belong together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from online_aug.diffusion.loading import Pipeline, training_scheduler
from online_aug.generation.inputs import Prompts
from online_aug.generation.vae import Autoencoder
from online_aug.saliency.maps import scaled
from online_aug.seeding import seed_of, torch_rng

_ROUNDS = 2
"""How often the difference is shared out."""
_EPSILON = 1e-7


class Glances(NamedTuple):
    """How often, and how noisy, the generator sees an image."""

    timesteps: tuple[float, ...]
    """Shares of the time steps that the model was trained with."""
    draws: int
    """Draws of noise at each of them, the same for all images. Every second draw is the negative of
    the one before: what noise alone does to the network then mostly cancels."""


class ForegroundFinder:
    """Maps in [0, 1] of where a loaded diffusion model sees what a prompt names.

    A map depends on its image and prompt alone: batches are of one size, and filled up.
    """

    def __init__(self, pipeline: Pipeline, glances: Glances, batch_size: int) -> None:
        """Take a text-to-image pipeline that is on its device.

        Args:
            pipeline: Its text encoder leaves the device.
            glances: How often each image is looked at.
            batch_size: Images in a call of the network, which sees each with the prompt and
                without; it is halved if memory runs out.
        """
        self.batch_size = batch_size
        self._unet: UNet2DConditionModel = pipeline.unet
        self._device = pipeline.unet.device
        self._autoencoder = Autoencoder(pipeline.vae, cache_bytes=0)
        self._prompts = Prompts(pipeline, self._device)
        kept = training_scheduler(pipeline.scheduler.config).alphas_cumprod
        steps = [round(share * (len(kept) - 1)) for share in glances.timesteps]
        self._levels = {step: float(kept[step]) for step in steps}
        self._draws = glances.draws

    @torch.no_grad()
    def __call__(
        self, images: UInt8[Tensor, "b 3 r r"], prompts: Sequence[str]
    ) -> Float[Tensor, "b h w"]:
        """Return a map of each image at the size of the latents, on the CPU.

        Args:
            images: Images at the model's resolution.
            prompts: The prompt of each, which names what is to be found.

        Raises:
            torch.OutOfMemoryError: If one image is too many.
        """
        self._prompts.embed(["", *prompts])
        found: list[Tensor] = []
        while len(found) < len(images):
            here = slice(len(found), len(found) + self.batch_size)
            try:
                found += self._look(images[here], prompts[here])
                continue
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            self.batch_size //= 2  # after the error is gone, which holds on to what was computed
            torch.cuda.empty_cache()
        return torch.stack(found)

    def _look(
        self, images: UInt8[Tensor, "b 3 r r"], prompts: Sequence[str]
    ) -> list[Float[Tensor, "h w"]]:
        count = len(images)
        places = [min(place, count - 1) for place in range(self.batch_size)]  # filled up
        means = [moments.mean for moments in self._autoencoder.encode(images)]
        clean = self._autoencoder.scaling_factor * torch.stack([means[place] for place in places])
        given = torch.stack([self._prompts[prompts[place]] for place in places])
        return list(shared_out(*self._glance(clean, given))[:count].cpu())

    def _glance(
        self, clean: Float[Tensor, "b c h w"], given: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b f h w"]]:
        """Return how much the prompt changes, and the features of the decoder, means of all looks.

        The network may predict noise, velocity or the image: at one time step these differences
        are multiples of one another, and each time step counts the same.
        """
        both = torch.cat([given, self._prompts[""].expand_as(given)])
        changed: list[Tensor] = []
        features: list[Tensor] = []
        with features_of(self._unet) as seen:
            for timestep, level in self._levels.items():
                changes: list[Tensor] = []
                for draw in range(self._draws):
                    noisy = level**0.5 * clean + (1 - level) ** 0.5 * _noise(clean[0], draw)
                    prompted, unprompted = self._predict(noisy, timestep, both).chunk(2)
                    changes.append((prompted - unprompted).abs().mean(1))
                    features.append(seen.pop().float().unflatten(0, (2, -1)).mean(0))
                changed.append(scaled(torch.stack(changes).mean(0)))
        return torch.stack(changed).mean(0), torch.stack(features).mean(0)

    def _predict(
        self, noisy: Float[Tensor, "b c h w"], timestep: int, both: Float[Tensor, "b2 t d"]
    ) -> Float[Tensor, "b2 c h w"]:
        twice = torch.cat([noisy, noisy]).to(self._device, self._unet.dtype)
        predicted: Tensor = self._unet(
            twice, timestep, encoder_hidden_states=both, return_dict=False
        )[0]
        return predicted.float()


def shared_out(
    difference: Float[Tensor, "b h w"], features: Float[Tensor, "b f h2 w2"]
) -> Float[Tensor, "b h2 w2"]:
    """Give each place the difference at all places, as far as its features are like theirs.

    Features are taken relative to their mean over the image, so a place that looks unlike another
    loses what that one gains.

    Args:
        difference: How much a prompt changes what is predicted.
        features: What the decoder makes of the image.

    Returns:
        Maps in [0, 1].
    """
    size = features.shape[-2:]
    values = F.interpolate(difference.unsqueeze(1), size, mode="bilinear").flatten(1)
    centred = features.flatten(2)
    centred = centred - centred.mean(2, keepdim=True)
    centred = centred / (_EPSILON + torch.linalg.matrix_norm(centred)[:, None, None])
    for _ in range(_ROUNDS):
        values = values - values.mean(1, keepdim=True)
        values = torch.einsum("bfn,bf->bn", centred, torch.einsum("bfn,bn->bf", centred, values))
    return scaled(values.view(-1, *size))


@contextmanager
def features_of(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Collect, call by call, what the last but one block of the decoder puts out.

    It is as large as the latents, and still tells things from one another rather than textures.
    """
    block: nn.Module = unet.up_blocks[max(0, len(unet.up_blocks) - 2)]
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _noise(latent: Float[Tensor, "c h w"], draw: int) -> Float[Tensor, "c h w"]:
    noise = torch.randn(latent.shape, generator=torch_rng(seed_of("foreground", draw // 2)))
    return -noise if draw % 2 else noise
