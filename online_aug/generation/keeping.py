"""What denoising has to leave as it is: put back after every step, as noisy as the rest.

This is how diffusers' inpainting pipeline works with a model that was not trained for inpainting.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """The part of one image that stays, in latents."""

    mask: Bool[Tensor, "1 h w"]
    clean: Float[Tensor, "c h w"]
    noise: Float[Tensor, "c h w"]

    @classmethod
    def of(
        cls,
        mask: UInt8[Tensor, "1 r r"],
        clean: Float[Tensor, "c h w"],
        noise: Float[Tensor, "c h w"],
    ) -> "Kept":
        """A cell of the latents stays if the pixel at its place does, above 0 in `mask`."""
        cells = F.interpolate(mask.unsqueeze(0).float(), size=clean.shape[-2:])
        return cls(cells[0] > 0, clean, noise)

    def on(self, device: torch.device) -> "Kept":
        """The same on a device."""
        return Kept(self.mask.to(device), self.clean.to(device), self.noise.to(device))

    def put_back(
        self, latent: Float[Tensor, "c h w"], alpha: float, sigma: float
    ) -> Float[Tensor, "c h w"]:
        """The latent, which is `alpha * data + sigma * noise`, with what stays as it has to be."""
        return torch.where(self.mask, alpha * self.clean + sigma * self.noise, latent)
