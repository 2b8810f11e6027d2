"""The autoencoder between pixels and latents; each source is encoded once.

Images are encoded and decoded in batches of one size, so that a result does not depend on the
others in its batch.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float, UInt8
from torch import Tensor

VAE_BATCH_SIZE = 4
"""Images in a call of encoder or decoder; fewer are filled up: other shapes round otherwise."""
LATENT_CACHE_BYTES = 2**30
"""Memory for the latents of sources."""


class Moments(NamedTuple):
    """The encoder's output for an image: a Gaussian over latents, or one latent."""

    mean: Float[Tensor, "c h w"]
    std: Float[Tensor, "c h w"] | None
    """None if the encoder gives one latent, as that of a tiny autoencoder does."""

    def sample(self, rng: torch.Generator) -> Float[Tensor, "c h w"]:
        """Draw a latent from the Gaussian; a single latent is returned as it is."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * torch.randn(self.mean.shape, generator=rng)


class Autoencoder:
    """A VAE on its device that remembers the latents of the images used last."""

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny, cache_bytes: int = LATENT_CACHE_BYTES
    ) -> None:
        """Take a VAE, and how much memory the remembered latents may take."""
        self._vae = vae
        self._is_tiny = isinstance(vae, AutoencoderTiny)
        self._cache = _LatentCache(cache_bytes)
        self.scaling_factor = float(vae.config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> list[Moments]:
        """Return the moments of each image on the CPU; they are computed once while remembered."""
        wanted = {_digest(image): image for image in images}
        found = {key: kept for key in wanted if (kept := self._cache.get(key)) is not None}
        missing = [key for key in wanted if key not in found]
        encoded = self._encode_batches([wanted[key] for key in missing])
        for key, moments in zip(missing, encoded, strict=True):
            found[key] = moments.clone()  # a view would keep its whole batch in memory
            self._cache.put(key, found[key])
        return [self._as_moments(found[_digest(image)]) for image in images]

    @torch.no_grad()
    def decode(self, latents: Sequence[Float[Tensor, "c h w"]]) -> list[Float[Tensor, "3 h2 w2"]]:
        """Return images in [0, 1] on the CPU; NaN if the network made NaN."""

        def decode_batch(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
            scaled = (batch / self.scaling_factor).to(self._vae.dtype)
            images: Tensor = self._vae.decode(scaled, return_dict=False)[0]
            return (images.float() / 2 + 0.5).clamp(0, 1).cpu()

        return _in_batches(decode_batch, latents)

    def _encode_batches(self, images: Sequence[UInt8[Tensor, "3 h w"]]) -> list[Tensor]:
        def encode_batch(batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b moments h2 w2"]:
            pixels = (batch.to(self._vae.device).float() / 127.5 - 1).to(self._vae.dtype)
            encoded = self._vae.encode(pixels)
            if self._is_tiny:
                latents: Tensor = encoded.latents
                return latents.float().cpu()
            gaussian = encoded.latent_dist
            return torch.cat([gaussian.mean, gaussian.std], dim=1).float().cpu()

        return _in_batches(encode_batch, images)

    def _as_moments(self, encoded: Float[Tensor, "moments h w"]) -> Moments:
        return Moments(encoded, None) if self._is_tiny else Moments(*encoded.chunk(2))


class _LatentCache:
    """Encoded images by digest; the ones used longest ago are dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._size = 0

    def get(self, key: bytes) -> Tensor | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: bytes, tensor: Tensor) -> None:
        self._kept[key] = tensor
        self._size += tensor.nbytes
        while self._size > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._size -= dropped.nbytes


def _in_batches(function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    results: list[Tensor] = []
    for first in range(0, len(tensors), VAE_BATCH_SIZE):
        batch = list(tensors[first : first + VAE_BATCH_SIZE])
        filled = batch + batch[-1:] * (VAE_BATCH_SIZE - len(batch))
        results += function(torch.stack(filled))[: len(batch)]
    return results


def _digest(image: UInt8[Tensor, "3 h w"]) -> bytes:
    shape = repr(tuple(image.shape)).encode()
    pixels = image.contiguous().numpy().tobytes()
    return hashlib.blake2b(shape + pixels, digest_size=16).digest()
