"""From requests to images: continuous batching of one diffusion model.

Three things go on at once. One thread reads and encodes what is to start; the caller's thread
denoises, all slots in one call of the network; another thread decodes what is finished.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import torchvision.transforms.v2.functional as tvf
from diffusers import StableDiffusionInstructPix2PixPipeline
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.config import GenerationConfig
from online_aug.generation.adapter_files import Adapters
from online_aug.generation.adapters import load_adapters
from online_aug.generation.autoencoding import TOGETHER, Autoencoder, Moments
from online_aug.generation.denoiser import Denoiser
from online_aug.generation.identity import kind_of
from online_aug.generation.models import Pipeline, choose_attention, load_pipeline
from online_aug.generation.prompts import Prompts
from online_aug.generation.sides import Side
from online_aug.generation.slots import Slots, Start, to_device
from online_aug.generation.solvers import Solver, Trajectory
from online_aug.generation.timing import Shares
from online_aug.records import GenerationRequest
from online_aug.seeding import torch_rng

Prepare: TypeAlias = Callable[[Sequence[GenerationRequest]], UInt8[Tensor, "b 3 r r"]]
"""Starting images of some requests, at their resolution."""


class Finished(NamedTuple):
    """A request and its image in [0, 1], NaN where the model made NaN."""

    request: GenerationRequest
    image: Float[Tensor, "3 r r"]


def fit(image: UInt8[Tensor, "3 h w"], resolution: int) -> UInt8[Tensor, "3 r r"]:
    """The image as a square of the generator's resolution, aspect ignored as Diff-Mix does."""
    if image.shape[-2:] == (resolution, resolution):
        return image
    resized: Tensor = tvf.resize(image, [resolution, resolution], antialias=True)
    return resized


class ImageGenerator:
    """A loaded model and its slots.

    `submit` takes requests in, `step` gives finished images back, in any order. An image depends on
    its request and its starting image alone.
    """

    def __init__(self, pipeline: Pipeline, attention: str, slots: int) -> None:
        """Take a pipeline that is on its device.

        Args:
            pipeline: Its text encoder leaves the device.
            attention: Which kernels were set.
            slots: Images denoised together.
        """
        device = pipeline.unet.device
        self.attention = attention
        self.slots = slots
        self.time = Shares("prepare", "encode", "denoise", "decode", "idle")
        self._device = device
        self._edits = isinstance(pipeline, StableDiffusionInstructPix2PixPipeline)
        self._trained_with = dict(pipeline.scheduler.config)
        self._prompts = Prompts(pipeline, device)
        self._autoencoder = Autoencoder(pipeline.vae)
        self._denoiser = Denoiser(pipeline, self._prompts[""])
        self._trajectories: dict[tuple[str, int, float], Trajectory] = {}
        self._running: Slots | None = None
        self._resolution: int | None = None
        self._before, self._after = Side("prepare", device), Side("complete", device)
        self._starting: deque[Future[list[Start]]] = deque()
        self._ready: deque[Start] = deque()
        self._undecoded: list[tuple[GenerationRequest, Float[Tensor, "c h w"]]] = []
        self._finishing: deque[Future[list[Finished]]] = deque()
        self._in_flight = 0

    @classmethod
    def load(
        cls,
        model: Path,
        finetuned: Adapters | None,
        config: GenerationConfig,
        dtype: str,
        device: str,
    ) -> "ImageGenerator":
        """Load model and adapters onto a device; what kind it is, its directory tells.

        Raises:
            UserError: If the directory holds no Stable Diffusion, or the attention cannot run here.
        """
        pipeline = load_pipeline(model, dtype, kind_of(model))
        if finetuned:
            load_adapters(pipeline, finetuned)
        pipeline.to(device)
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
        attention = choose_attention(config.attention, pipeline, torch.device(device))
        return cls(pipeline, attention, config.slots)

    @property
    def in_flight(self) -> int:
        """Requests taken in whose images have not come out."""
        return self._in_flight

    @property
    def room(self) -> int:
        """How many more requests keep everything busy; more only wait."""
        return max(0, self.slots + 3 * TOGETHER - self._in_flight)

    def learn(self, prompts: Sequence[str]) -> None:
        """Embed prompts that are to come, so that the text encoder visits the device once."""
        self._prompts.learn(prompts)

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in; their preparation begins at once, in another thread.

        Raises:
            ValueError: If a request is for a pipeline of the other kind, or for images of another
                size than those before.
        """
        for request in requests:
            self._check(request)
        self._in_flight += len(requests)
        self._starting.append(self._before.submit(self._start, list(requests), prepare))

    def step(self) -> list[Finished]:
        """Take all slots one step on, or wait for what they need; gives what is finished by then.

        Raises:
            Exception: Whatever preparing or decoding raised.
        """
        while self._starting and self._starting[0].done():
            self._ready += self._starting.popleft().result()
        self._refill()
        if self._running and self._running.taken:
            with self.time.of("denoise"):
                self._undecoded += self._running.tick()
        else:
            self._decode(at_least=1)
            under_way: list[Future[Any]] = [*self._starting, *self._finishing]
            with self.time.of("idle"):
                wait(under_way, return_when=FIRST_COMPLETED)
        self._decode(at_least=TOGETHER)
        return self._collect()

    def generate(
        self, requests: Sequence[GenerationRequest], images: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 r r"]:
        """All images of some requests, in their order.

        Args:
            requests: Of one resolution; any mix else.
            images: What each starts from, of any size.
        """
        for first in range(0, len(requests), TOGETHER):
            some = requests[first : first + TOGETHER]
            starts = [
                fit(image, request.resolution)
                for request, image in zip(some, images[first:], strict=False)
            ]
            self.submit(some, lambda _, starts=starts: torch.stack(starts))  # type: ignore[misc]
        made: dict[GenerationRequest, Tensor] = {}
        while self._in_flight:
            made.update(self.step())
        return torch.stack([made[request] for request in requests])

    def drop(self) -> None:
        """Forget what is in flight; what a thread is at it finishes in vain."""
        under_way: list[Future[Any]] = [*self._starting, *self._finishing]
        for future in under_way:
            future.cancel()
        self._starting.clear()
        self._ready.clear()
        self._undecoded.clear()
        self._finishing.clear()
        self._running = None
        self._in_flight = 0

    def close(self) -> None:
        """Forget what is in flight and end the threads."""
        self.drop()
        self._before.close()
        self._after.close()

    def _check(self, request: GenerationRequest) -> None:
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

    def _start(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> list[Start]:
        with self.time.of("prepare"):
            images = prepare(requests)
        with self.time.of("encode"):
            self._prompts.learn([request.prompt for request in requests])
            moments = self._autoencoder.encode(images)
        return [self._begin(*pair) for pair in zip(requests, moments, strict=True)]

    def _begin(self, request: GenerationRequest, moments: Moments) -> Start:
        """The first noisy latent, its noise drawn in the order of diffusers' pipelines.

        Image-to-image starts from a sample of the encoder's Gaussian, InstructPix2Pix reads its
        mean, unscaled.
        """
        rng, way = torch_rng(request.noise_seed), self._trajectory(request)
        shape = moments.mean.shape
        if self._edits:
            latent = way.start_noise * torch.randn(shape, generator=rng)
        else:
            sample = moments.mean + moments.std * torch.randn(shape, generator=rng)
            noise = torch.randn(shape, generator=rng)
            clean = self._autoencoder.scaling_factor * sample
            latent = way.start_image * clean + way.start_noise * noise
        return Start(
            request=request,
            latent=to_device(latent, self._device),
            source=to_device(moments.mean, self._device) if self._edits else None,
            prompt=self._prompts[request.prompt],
            trajectory=way,
            rng=rng,
        )

    def _trajectory(self, request: GenerationRequest) -> Trajectory:
        name, steps, strength = request.scheduler, request.num_inference_steps, request.strength
        if (name, steps, strength) not in self._trajectories:
            solver = Solver(name, self._trained_with)
            way = solver.from_noise(steps) if self._edits else solver.from_image(steps, strength)
            self._trajectories[name, steps, strength] = way
        return self._trajectories[name, steps, strength]

    def _refill(self) -> None:
        if self._running is None and self._ready:
            self._running = Slots(self._denoiser, self.slots, self._ready[0], self._device)
        while self._running and self._running.free and self._ready:
            self._running.put(self._ready.popleft())

    def _decode(self, at_least: int) -> None:
        while len(self._undecoded) >= at_least:
            group, self._undecoded = self._undecoded[:TOGETHER], self._undecoded[TOGETHER:]
            self._finishing.append(self._after.submit(self._finish, group))

    def _finish(
        self, group: Sequence[tuple[GenerationRequest, Float[Tensor, "c h w"]]]
    ) -> list[Finished]:
        with self.time.of("decode"):
            images = self._autoencoder.decode([latent for _, latent in group])
        return [Finished(request, image) for (request, _), image in zip(group, images, strict=True)]

    def _collect(self) -> list[Finished]:
        done: list[Finished] = []
        while self._finishing and self._finishing[0].done():
            done += self._finishing.popleft().result()
        self._in_flight -= len(done)
        return done
