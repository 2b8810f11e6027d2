"""From a request to its first noisy latent: embed the prompt, encode the source, draw noise."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TypeAlias

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.diffusion.loading import Pipeline
from online_aug.generation.denoising_loop import KeptRegion, Start, to_device
from online_aug.generation.solvers import Solver, Trajectory
from online_aug.generation.vae import Autoencoder, Moments
from online_aug.request import GenerationRequest
from online_aug.seeding import torch_rng

Prepare: TypeAlias = Callable[[Sequence[GenerationRequest]], UInt8[Tensor, "b _ r r"]]
"""Returns the starting images of requests at their resolution: RGB, and perhaps a fourth channel
that is above 0 where the image has to stay as it is."""


class WorkTimes:
    """Seconds and counts by kind of work; each kind is done in one thread alone."""

    def __init__(self, *kinds: str) -> None:
        """Start at 0 for each kind."""
        self.seconds = dict.fromkeys(kinds, 0.0)
        self.counts = dict.fromkeys(kinds, 0)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Count the time inside under a kind."""
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += perf_counter() - started
            self.counts[kind] += 1

    def reset(self) -> None:
        """Start again at 0."""
        for kind in self.seconds:
            self.seconds[kind], self.counts[kind] = 0.0, 0


class Starter:
    """Makes the starting point of each image; remembers prompts, sources and trajectories."""

    def __init__(self, pipeline: Pipeline, autoencoder: Autoencoder, times: WorkTimes) -> None:
        """Take a pipeline that is on its device.

        Args:
            pipeline: Its text encoder leaves the device.
            autoencoder: The one of this pipeline.
            times: Counts under `prepare` and `encode`.
        """
        self._device = pipeline.unet.device
        self._edits = isinstance(pipeline, StableDiffusionInstructPix2PixPipeline)
        self._trained_with = dict(pipeline.scheduler.config)
        self._latent_channels = int(pipeline.vae.config.latent_channels)
        self._pixels_per_latent = int(pipeline.vae_scale_factor)
        self._autoencoder, self._times = autoencoder, times
        self.prompts = Prompts(pipeline, self._device)
        self._trajectories: dict[tuple[str, int, float | None], Trajectory] = {}
        self._resolution: int | None = None

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that this pipeline cannot make beside the others.

        Raises:
            ValueError: If it is for a pipeline of the other kind, or for an image of another size
                than those before.
        """
        if self._edits != (request.image_guidance_scale is not None):
            raise ValueError(
                "image_guidance_scale must be given to an InstructPix2Pix and to no other model, "
                f"got {request.image_guidance_scale}"
            )
        self._resolution = self._resolution or request.resolution
        if request.resolution != self._resolution:
            raise ValueError(
                "resolution must be the same for all images of one generator, "
                f"got {request.resolution} after {self._resolution}"
            )

    def __call__(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> list[Start]:
        """Return the images of some requests before their first step, in order."""
        with self._times.of("prepare"):
            images = prepare(requests)
        with self._times.of("encode"):
            self.prompts.embed([request.prompt for request in requests])
            moments = self._encode(requests, images[:, :3])
        masks = images[:, 3:] if images.shape[1] > 3 else [None] * len(images)
        return [self._start(*parts) for parts in zip(requests, moments, masks, strict=True)]

    def _encode(
        self, requests: Sequence[GenerationRequest], images: UInt8[Tensor, "b 3 r r"]
    ) -> list[Moments | None]:
        is_used = [self._edits or not self._is_from_noise(request) for request in requests]
        encoded = iter(self._autoencoder.encode(images[torch.tensor(is_used)]))
        return [next(encoded) if used else None for used in is_used]

    def _start(
        self,
        request: GenerationRequest,
        moments: Moments | None,
        mask: UInt8[Tensor, "1 r r"] | None,
    ) -> Start:
        # Noise is drawn in the order of diffusers' pipelines. Image-to-image starts from a sample
        # of the encoder's Gaussian, text-to-image and InstructPix2Pix from noise alone;
        # InstructPix2Pix reads the Gaussian's mean, unscaled.
        rng, trajectory = torch_rng(request.noise_seed), self._trajectory(request)
        side = request.resolution // self._pixels_per_latent
        shape, kept = (self._latent_channels, side, side), None
        if moments is None or self._edits:
            latent = trajectory.start_noise * torch.randn(shape, generator=rng)
        else:
            clean = self._autoencoder.scaling_factor * moments.sample(rng)
            noise = torch.randn(shape, generator=rng)
            latent = trajectory.start_image * clean + trajectory.start_noise * noise
            if mask is not None and mask.any():
                kept = KeptRegion.of(mask, clean, noise).on(self._device)
        return Start(
            request=request,
            latent=to_device(latent, self._device),
            source=to_device(moments.mean, self._device) if self._edits and moments else None,
            prompt=self.prompts[request.prompt],
            trajectory=trajectory,
            rng=rng,
            kept=kept,
        )

    def _trajectory(self, request: GenerationRequest) -> Trajectory:
        name, steps = request.scheduler, request.num_inference_steps
        strength = None if self._is_from_noise(request) else request.strength
        if (name, steps, strength) not in self._trajectories:
            solver = Solver(name, self._trained_with)
            self._trajectories[name, steps, strength] = (
                solver.from_noise(steps) if strength is None else solver.from_image(steps, strength)
            )
        return self._trajectories[name, steps, strength]

    def _is_from_noise(self, request: GenerationRequest) -> bool:
        return self._edits or request.starts_from == "noise"


class Prompts:
    """Embeddings of prompts on the device; each is computed once."""

    def __init__(self, pipeline: Pipeline, device: torch.device) -> None:
        """Take a pipeline; its text encoder rests on the CPU between prompts."""
        self._pipeline = pipeline
        self._device = device
        self._known: dict[str, Float[Tensor, "t d"]] = {}
        pipeline.text_encoder.to("cpu")

    def __getitem__(self, prompt: str) -> Float[Tensor, "t d"]:
        """Return the embedding of a prompt."""
        self.embed([prompt])
        return self._known[prompt]

    @torch.no_grad()
    def embed(self, prompts: Iterable[str]) -> None:
        """Compute the embeddings not yet known, with the text encoder on the device meanwhile."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if not new:
            return
        self._pipeline.text_encoder.to(self._device)
        for prompt in new:  # one by one: in a batch the arithmetic rounds otherwise
            self._known[prompt] = self._encode(prompt)[0]
        self._pipeline.text_encoder.to("cpu")

    def _encode(self, prompt: str) -> Float[Tensor, "1 t d"]:
        pipeline = self._pipeline
        if isinstance(pipeline, StableDiffusionInstructPix2PixPipeline):
            embedding: Tensor = pipeline._encode_prompt(prompt, self._device, 1, False)
            return embedding
        embedding, _ = pipeline.encode_prompt(prompt, self._device, 1, False)
        return embedding
