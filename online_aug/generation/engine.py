"""From requests to images: continuous batching of one diffusion model.

Three things go on at once. One thread prepares and encodes what is to start; the caller's thread
denoises, all slots in one call of the network; another thread decodes and judges what is finished.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.config.sections import GenerationConfig
from online_aug.data.transforms import fit_square
from online_aug.diffusion.adapters import Adapters
from online_aug.diffusion.compatibility import choose_attention, choose_slots
from online_aug.diffusion.directory import kind_of, locate_vae
from online_aug.diffusion.few_steps import locate_few_step_adapter, read_few_step_adapter
from online_aug.diffusion.loading import (
    Pipeline,
    load_adapters,
    load_few_step_adapter,
    load_pipeline,
)
from online_aug.diffusion.weights import locate_unet
from online_aug.generation.denoiser import Denoiser, Execution, chosen_execution
from online_aug.generation.denoising_loop import Slots, Start
from online_aug.generation.gate import Finished, Gate
from online_aug.generation.inputs import Prepare, Starter, WorkTimes
from online_aug.generation.vae import VAE_BATCH_SIZE, Autoencoder
from online_aug.request import GenerationRequest

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class ImageGenerator:
    """A loaded diffusion model that denoises a fixed number of images together.

    `submit` takes requests in, `step` returns finished images, in any order. An image depends on
    its request and its starting image alone. If memory runs out, it goes on with half the slots.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        slots: int,
        execution: Execution = "eager",
        gate: Gate | None = None,
    ) -> None:
        """Take a pipeline that is on its device.

        Args:
            pipeline: Its text encoder leaves the device.
            slots: How many images are denoised together.
            execution: How the network is called.
            gate: Judges finished images; None rejects only those that are blank or not finite.
        """
        device = pipeline.unet.device
        self.slots = slots
        self.fast_paths = f"{execution} calls"
        self.times = WorkTimes("prepare", "encode", "denoise", "decode", "judge", "idle")
        self._device = device
        self._autoencoder = Autoencoder(pipeline.vae)
        self._starter = Starter(pipeline, self._autoencoder, self.times)
        self._denoiser = Denoiser(pipeline, self._starter.prompts[""], execution)
        self._gate = gate or Gate()
        self._running: Slots | None = None
        self._starting = BackgroundCalls("prepare", device, self._starter)
        self._finishing = BackgroundCalls("complete", device, self._finish)
        self._ready: deque[Start] = deque()
        self._undecoded: list[tuple[GenerationRequest, Float[Tensor, "c h w"]]] = []
        self._in_flight = 0

    @classmethod
    def load(
        cls,
        model: Path,
        finetuned: Adapters | None,
        config: GenerationConfig,
        dtype: str,
        device: str,
        gate: Gate | None = None,
    ) -> "ImageGenerator":
        """Load model and adapters onto a device; the model's directory tells of what kind it is.

        Raises:
            UserError: If the directory holds no Stable Diffusion, weights are not finite, slots do
                not fit, or the attention cannot run here.
        """
        vae, unet = locate_vae(config.vae, model), locate_unet(config.unet)
        pipeline = load_pipeline(model, dtype, kind_of(model), vae, unet)
        if finetuned:
            load_adapters(pipeline, finetuned)
        if few_steps := locate_few_step_adapter(config.few_step_adapter):
            lora = read_few_step_adapter(few_steps, model)
            load_few_step_adapter(pipeline, lora, few_steps)
        pipeline.to(device)
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
        attention = choose_attention(config.attention, pipeline, torch.device(device))
        execution = chosen_execution(config.execution, torch.device(device))
        slots = choose_slots(config, pipeline)
        generator = cls(pipeline, slots, execution, gate)
        generator.fast_paths = f"{dtype}, {attention} attention, {execution} calls"
        _log.info("%s on %s: %d slots, %s", model, device, slots, generator.fast_paths)
        return generator

    @property
    def in_flight(self) -> int:
        """How many requests were taken in whose images have not come out."""
        return self._in_flight

    @property
    def room(self) -> int:
        """How many more requests keep everything busy; further ones would only wait."""
        return max(0, self.slots + 3 * VAE_BATCH_SIZE - self._in_flight)

    def embed(self, prompts: Sequence[str]) -> None:
        """Embed prompts that are to come, so that the text encoder visits the device once."""
        self._starter.prompts.embed(prompts)

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in; their preparation begins at once, in another thread.

        Raises:
            ValueError: If a request is for a pipeline of the other kind, or for images of another
                size than those before.
        """
        for request in requests:
            self._starter.check(request)
        self._in_flight += len(requests)
        self._starting.submit(list(requests), prepare)

    def step(self) -> list[Finished]:
        """Denoise all slots by one step, or wait for what they need; return what is finished.

        Raises:
            torch.OutOfMemoryError: If one slot is too many.
            Exception: If preparing, decoding or judging raised it.
        """
        try:
            return self._go_on()
        except torch.OutOfMemoryError:
            if self.slots == 1:
                raise
        self._halve_slots()  # after the error is gone, which holds on to what the network computed
        return []

    def generate(
        self, requests: Sequence[GenerationRequest], images: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 r r"]:
        """Return the images of some requests, in their order.

        Args:
            requests: Requests of one resolution.
            images: The source of each, of any size.
        """
        for first in range(0, len(requests), VAE_BATCH_SIZE):
            some = requests[first : first + VAE_BATCH_SIZE]
            starts = torch.stack(
                [
                    fit_square(image, request.resolution)
                    for request, image in zip(some, images[first:], strict=False)
                ]
            )
            self.submit(some, lambda _, starts=starts: starts)  # type: ignore[misc]
        made: dict[GenerationRequest, Tensor] = {}
        while self._in_flight:
            made.update((one.request, one.image) for one in self.step())
        return torch.stack([made[request] for request in requests])

    def drop(self) -> None:
        """Forget what is in flight; what a thread is computing is thrown away."""
        self._starting.drop()
        self._finishing.drop()
        self._ready.clear()
        self._undecoded.clear()
        self._running = None
        self._in_flight = 0

    def close(self) -> None:
        """Forget what is in flight and end the threads."""
        self.drop()
        self._starting.close()
        self._finishing.close()

    def _go_on(self) -> list[Finished]:
        for starts in self._starting.collect():
            self._ready += starts
        self._refill_slots()
        if self._running and self._running.taken:
            with self.times.of("denoise"):
                self._undecoded += self._running.tick()
        else:
            self._decode(at_least=1)
            pending: list[Future[Any]] = [*self._starting.pending, *self._finishing.pending]
            with self.times.of("idle"):
                wait(pending, return_when=FIRST_COMPLETED)
        self._decode(at_least=VAE_BATCH_SIZE)
        done = [one for group in self._finishing.collect() for one in group]
        self._in_flight -= len(done)
        return done

    def _refill_slots(self) -> None:
        if self._running is None and self._ready:
            self._running = Slots(self._denoiser, self.slots, self._ready[0], self._device)
        while self._running and self._running.free and self._ready:
            self._running.put(self._ready.popleft())

    def _decode(self, at_least: int) -> None:
        while len(self._undecoded) >= at_least:
            batch = self._undecoded[:VAE_BATCH_SIZE]
            self._undecoded = self._undecoded[VAE_BATCH_SIZE:]
            self._finishing.submit(batch)

    def _finish(
        self, batch: Sequence[tuple[GenerationRequest, Float[Tensor, "c h w"]]]
    ) -> list[Finished]:
        requests = [request for request, _ in batch]
        with self.times.of("decode"):
            images = self._autoencoder.decode([latent for _, latent in batch])
        with self.times.of("judge"):
            verdicts = self._gate(requests, torch.stack(images))
        return [Finished(*parts) for parts in zip(requests, images, verdicts, strict=True)]

    def _halve_slots(self) -> None:
        self._denoiser.forget_recordings()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.slots //= 2
        if self._running:
            self._ready.extendleft(reversed(self._running.leave()))
            self._running = None
        _log.warning("out of memory: %d slots from now on", self.slots)


class _Job(NamedTuple, Generic[T]):
    run: Callable[[], T]
    result: Future[T]


class BackgroundCalls(Generic[P, T]):
    """Calls one function in a thread, on a GPU with a stream of its own, in order of submission.

    A call sees all that its user has put on the device before it was submitted, and its result is
    complete when it is given out.
    """

    def __init__(self, name: str, device: torch.device, function: Callable[P, T]) -> None:
        """Take the function; `name` is that of the thread."""
        self._function = function
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._jobs: deque[_Job[T]] = deque()

    @property
    def pending(self) -> list[Future[T]]:
        """Calls whose result was not given out."""
        return [job.result for job in self._jobs]

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin a call, or queue it behind the others."""
        run = self._on_stream(lambda: self._function(*args, **kwargs))
        self._jobs.append(_Job(run, self._thread.submit(run)))

    def collect(self) -> list[T]:
        """Return the results that are there, in the order of submission.

        Raises:
            torch.OutOfMemoryError: If there was no room for the next call; it is begun again.
            Exception: If the next call raised it.
        """
        done: list[T] = []
        while self._jobs and self._jobs[0].result.done():
            error = self._jobs[0].result.exception()
            if error and done:
                break  # it is raised next time, and what came before it is not lost
            job = self._jobs.popleft()
            if isinstance(error, torch.OutOfMemoryError):
                self._jobs.appendleft(_Job(job.run, self._thread.submit(job.run)))
            done.append(job.result.result())
        return done

    def drop(self) -> None:
        """Forget all calls; the result of the one that is running is thrown away."""
        for job in self._jobs:
            job.result.cancel()
        self._jobs.clear()

    def close(self) -> None:
        """Drop the calls that have not begun, and wait for the one that has."""
        self.drop()
        self._thread.shutdown()

    def _on_stream(self, function: Callable[[], T]) -> Callable[[], T]:
        stream = self._stream
        if stream is None:
            return function
        before = torch.cuda.current_stream(stream.device).record_event()

        def run() -> T:
            with torch.cuda.stream(stream):
                stream.wait_event(before)
                result = function()
            stream.synchronize()
            return result

        return run
