"""The denoising loop: a fixed number of slots, each with its own image at its own step.

A region that must not change is put back after every step, as noisy as the rest. This is how
diffusers' inpainting pipeline works with a model that was not trained for inpainting.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from online_aug.generation.denoiser import Conditions, Denoiser
from online_aug.generation.solver_tables import Step
from online_aug.generation.solvers import Trajectory, advance, nothing_before
from online_aug.request import GenerationRequest


@dataclass(frozen=True)
class KeptRegion:
    """The region of one image that stays as it is, in latents."""

    mask: Bool[Tensor, "1 h w"]
    clean: Float[Tensor, "c h w"]
    noise: Float[Tensor, "c h w"]

    @classmethod
    def of(
        cls,
        mask: UInt8[Tensor, "1 r r"],
        clean: Float[Tensor, "c h w"],
        noise: Float[Tensor, "c h w"],
    ) -> "KeptRegion":
        """Return the region whose pixels are above 0 in `mask`, at the size of the latents."""
        cells = F.interpolate(mask.unsqueeze(0).float(), size=clean.shape[-2:])
        return cls(cells[0] > 0, clean, noise)

    def on(self, device: torch.device) -> "KeptRegion":
        """Return the region on a device."""
        return KeptRegion(self.mask.to(device), self.clean.to(device), self.noise.to(device))

    def put_back(
        self, latent: Float[Tensor, "c h w"], alpha: float, sigma: float
    ) -> Float[Tensor, "c h w"]:
        """Restore the region in a latent that is `alpha * data + sigma * noise`."""
        return torch.where(self.mask, alpha * self.clean + sigma * self.noise, latent)


@dataclass(frozen=True, kw_only=True)
class Start:
    """One image before its first step, or before a later one if it has left its slot."""

    request: GenerationRequest
    latent: Float[Tensor, "c h w"]
    """Noisy latent with which the trajectory begins or goes on."""
    source: Float[Tensor, "c h w"] | None
    """Source latents that an InstructPix2Pix reads at every step."""
    prompt: Float[Tensor, "t d"]
    trajectory: Trajectory
    kept: KeptRegion | None = None
    rng: torch.Generator
    """Draws the request's further noise, on the CPU, so that it is the same for every device."""
    done_steps: int = 0
    previous: Float[Tensor, "m c h w"] | None = None
    """Data predicted in the last steps, which some solvers use."""
    noise: Float[Tensor, "c h w"] | None = None
    """Noise for the next step, if it was drawn already."""


_NO_STEP = torch.zeros(len(Step._fields))
"""The step of an empty slot: its latents become zeros, which no other slot sees."""


class Slots:
    """The images that are denoised together, each in a slot.

    Every tick is one call of the network at one shape, however many slots are taken, so the result
    of a slot depends on nothing but its own image.
    """

    def __init__(self, denoiser: Denoiser, count: int, like: Start, device: torch.device) -> None:
        """Allocate the slots.

        Args:
            denoiser: Calls the network.
            count: Number of slots.
            like: One of the images to come; all have its shapes.
            device: Where the network is.
        """

        def zeros_like(tensor: Tensor) -> Tensor:
            return torch.zeros(count, *tensor.shape, dtype=tensor.dtype, device=device)

        self._denoiser = denoiser
        self._device = device
        self._occupants: list[_Occupant | None] = [None] * count
        self._latents = zeros_like(like.latent)
        self._previous = nothing_before(self._latents)
        self._no_noise = zeros_like(like.latent)
        self._prompts = zeros_like(like.prompt)
        self._sources = None if like.source is None else zeros_like(like.source)

    @property
    def free(self) -> int:
        """How many slots have no image."""
        return self._occupants.count(None)

    @property
    def taken(self) -> int:
        """How many slots have an image."""
        return len(self._occupants) - self.free

    def put(self, start: Start) -> None:
        """Begin an image in a free slot, or go on with one that has left its slot.

        Raises:
            ValueError: If no slot is free.
        """
        if not self.free:
            raise ValueError("slots must have a free one, got none")
        slot = self._occupants.index(None)
        self._occupants[slot] = _Occupant(start, start.done_steps, start.noise)
        self._latents[slot].copy_(start.latent, non_blocking=True)
        # Not left as it was: NaN of an earlier image would remain NaN even times 0.
        self._previous[:, slot] = 0 if start.previous is None else start.previous
        self._prompts[slot].copy_(start.prompt, non_blocking=True)
        if self._sources is not None and start.source is not None:
            self._sources[slot].copy_(start.source, non_blocking=True)

    @torch.no_grad()
    def tick(self) -> list[tuple[GenerationRequest, Float[Tensor, "c h w"]]]:
        """Denoise every image by one step; return those that are finished, which leave their slots.

        If it raises, every image is as it was before.
        """
        columns = self._rows().T
        scales = columns[-2:]
        step = Step(*columns[:-2, :, None, None, None])
        output = self._denoiser(
            step.input_latent * self._latents,
            columns[Step._fields.index("timestep")],
            Conditions(self._prompts, self._sources, *scales),
            is_guided=any(o.start.request.guidance_scale > 1 for o in self._occupants if o),
        )
        latents, previous = advance(step, self._latents, output, self._previous, self._draw_noise())
        self._latents, self._previous = self._put_back_kept(latents), previous
        return self._take_finished()

    def leave(self) -> list[Start]:
        """Take out all images, as they were after the last tick that succeeded."""
        left = [
            replace(
                occupant.start,
                latent=self._latents[slot].clone(),
                done_steps=occupant.done_steps,
                previous=self._previous[:, slot].clone(),
                noise=occupant.noise,
            )
            for slot, occupant in enumerate(self._occupants)
            if occupant
        ]
        self._occupants = [None] * len(self._occupants)
        return left

    def _rows(self) -> Float[Tensor, "s k"]:
        rows = [
            torch.cat([occupant.row, _scales(occupant.start.request)])
            if occupant
            else torch.cat([_NO_STEP, torch.ones(2)])
            for occupant in self._occupants
        ]
        return to_device(torch.stack(rows), self._device)

    def _draw_noise(self) -> Float[Tensor, "s c h w"]:
        drawn = {
            slot: occupant.draw_noise()
            for slot, occupant in enumerate(self._occupants)
            if occupant and occupant.needs_noise
        }
        if not drawn:
            return self._no_noise
        noise = torch.zeros(self._latents.shape)
        for slot, own in drawn.items():
            noise[slot] = own
        return to_device(noise, self._device)

    def _put_back_kept(self, latents: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c h w"]:
        for slot, occupant in enumerate(self._occupants):
            if occupant and occupant.start.kept:
                latents[slot] = occupant.start.kept.put_back(latents[slot], *occupant.next_weights)
        return latents

    def _take_finished(self) -> list[tuple[GenerationRequest, Float[Tensor, "c h w"]]]:
        finished = []
        for slot, occupant in enumerate(self._occupants):
            if occupant is None:
                continue
            occupant.advance()
            if occupant.is_finished:
                finished.append((occupant.start.request, self._latents[slot].clone()))
                self._occupants[slot] = None
        return finished


@dataclass
class _Occupant:
    start: Start
    done_steps: int
    noise: Float[Tensor, "c h w"] | None

    @property
    def row(self) -> Float[Tensor, " k"]:
        return self.start.trajectory.rows[self.done_steps]

    @property
    def next_weights(self) -> tuple[float, float]:
        rows = self.start.trajectory.rows
        if self.done_steps + 1 == len(rows):
            return 1.0, 0.0
        following = Step(*rows[self.done_steps + 1].tolist())
        return following.alpha, following.sigma

    @property
    def needs_noise(self) -> bool:
        return bool(self.row[Step._fields.index("next_noise")])

    def draw_noise(self) -> Float[Tensor, "c h w"]:
        if self.noise is None:  # else it was drawn for this step, which failed and is tried again
            self.noise = torch.empty(self.start.latent.shape).normal_(generator=self.start.rng)
        return self.noise

    def advance(self) -> None:
        self.done_steps += 1
        self.noise = None

    @property
    def is_finished(self) -> bool:
        return self.done_steps == len(self.start.trajectory)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the host does not wait for a GPU."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _scales(request: GenerationRequest) -> Float[Tensor, " 2"]:
    return torch.tensor([request.guidance_scale, request.image_guidance_scale or 1.0])
