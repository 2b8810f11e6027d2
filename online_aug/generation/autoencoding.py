"""Between pixels and latents: each source encoded once, the same result in whatever company."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.generation.latent_store import LatentStore

TOGETHER = 4
"""Images a call of encoder or decoder. Fewer are filled up: another shape would round otherwise."""


class Moments(NamedTuple):
    """What an encoder says of an image: a Gaussian over latents, or one latent."""

    mean: Float[Tensor, "c h w"]
    std: Float[Tensor, "c h w"] | None
    """None where the encoder gives one latent, as a tiny autoencoder's does."""

    def sample(self, rng: torch.Generator) -> Float[Tensor, "c h w"]:
        """A latent drawn from the Gaussian; the one there is draws nothing."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * torch.randn(self.mean.shape, generator=rng)


class Autoencoder:
    """A VAE on its device that keeps what it has encoded, as long as there is room."""

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny, store: LatentStore | None = None
    ) -> None:
        self._vae = vae
        self._is_tiny = isinstance(vae, AutoencoderTiny)
        self.store = store or LatentStore()
        self.scaling_factor = float(vae.config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> list[Moments]:
        """The moments of each image, on the CPU; computed once an image while they are kept."""
        wanted = {_digest(image): image for image in images}
        found = {key: kept for key in wanted if (kept := self.store.get(key)) is not None}
        missing = [key for key in wanted if key not in found]
        made = self._encoded([wanted[key] for key in missing])
        for key, encoded in zip(missing, made, strict=True):
            found[key] = encoded.clone()  # itself a part of its batch, which would be kept too
            self.store.put(key, found[key])
        return [self._moments(found[_digest(image)]) for image in images]

    @torch.no_grad()
    def decode(self, latents: Sequence[Float[Tensor, "c h w"]]) -> list[Float[Tensor, "3 h2 w2"]]:
        """Images in [0, 1] on the CPU, NaN where the network made NaN."""

        def decoded(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
            scaled = (batch / self.scaling_factor).to(self._vae.dtype)
            images: Tensor = self._vae.decode(scaled, return_dict=False)[0]
            return (images.float() / 2 + 0.5).clamp(0, 1).cpu()

        return list(_in_groups(decoded, latents))

    def _encoded(self, images: Sequence[UInt8[Tensor, "3 h w"]]) -> list[Tensor]:
        def encoded(batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b moments h2 w2"]:
            pixels = (batch.to(self._vae.device).float() / 127.5 - 1).to(self._vae.dtype)
            said = self._vae.encode(pixels)
            if self._is_tiny:
                latents: Tensor = said.latents
                return latents.float().cpu()
            gaussian = said.latent_dist
            return torch.cat([gaussian.mean, gaussian.std], dim=1).float().cpu()

        return _in_groups(encoded, images)

    def _moments(self, encoded: Float[Tensor, "moments h w"]) -> Moments:
        return Moments(encoded, None) if self._is_tiny else Moments(*encoded.chunk(2))


def _in_groups(function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """A function of batches, over tensors of one shape, in batches of one size."""
    results: list[Tensor] = []
    for first in range(0, len(tensors), TOGETHER):
        group = list(tensors[first : first + TOGETHER])
        filled = group + group[-1:] * (TOGETHER - len(group))
        results += function(torch.stack(filled))[: len(group)]
    return results


def _digest(image: UInt8[Tensor, "3 h w"]) -> bytes:
    shape = repr(tuple(image.shape)).encode()
    pixels = image.contiguous().numpy().tobytes()
    return hashlib.blake2b(shape + pixels, digest_size=16).digest()
