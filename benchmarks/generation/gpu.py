"""Measure Stable Diffusion's architectures on one GPU: our engine beside diffusers' pipelines.

    python -m benchmarks.generation.gpu [--device cuda:0] [--seconds 8] [--miniature]

Stable Diffusion 1.5 and InstructPix2Pix are built from their published settings with random
weights, so nothing is downloaded; noise takes as long as any other image. Rates are steady states
without reading and storing; strengths are mixed if a row says so. TFLOP/s are those of the U-Net's
calls, beside a product of two large matrices in the same number format. Targets: half the rate of
the matrix product, 4 times diffusers at batch 1, and 1.5 times diffusers' best batch size fed in
the order of the plan with mixed strengths. `--miniature` tries all of it on the embedded models'
architecture with few steps.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generation._random_models import RandomModels
from online_aug.diffusion.compatibility import choose_attention
from online_aug.diffusion.loading import Pipeline
from online_aug.errors import UserError
from online_aug.generation.denoiser import Execution
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.solvers import sampling_scheduler
from online_aug.planning import ListedRequests
from online_aug.producer.filling import measure_speed
from online_aug.producer.work import Work
from online_aug.request import GenerationRequest
from online_aug.seeding import torch_rng

MIXED = (0.3, 0.5, 0.7, 0.9)
BATCHES = (1, 8, 16)
MINIATURE_STEPS, MINIATURE_BATCHES = 4, (1, 2)
TERA = 1e12


@dataclass(frozen=True)
class Case:
    """Settings of the requests of one table row."""

    name: str
    steps: int
    strengths: tuple[float, ...]
    guidance_scale: float
    has_tiny_autoencoder: bool = False


CASES = (
    Case("25 steps, 0.7, guided", 25, (0.7,), 7.5),
    Case("25 steps, mixed, guided", 25, MIXED, 7.5),
    Case("4 steps, unguided", 4, (1.0,), 1.0),
    Case("1 step, unguided", 1, (1.0,), 1.0),
    Case("1 step, unguided, tiny autoencoder", 1, (1.0,), 1.0, has_tiny_autoencoder=True),
)
EDIT = Case("25 steps, edit", 25, (1.0,), 7.5)


@dataclass(frozen=True)
class Bench:
    """The device to measure on, and how long."""

    device: torch.device
    seconds: float
    is_miniature: bool

    @property
    def models(self) -> RandomModels:
        """Models of the size to measure."""
        return RandomModels(self.device, self.is_miniature)

    def ours(
        self, pipeline: Pipeline, requests: Sequence[GenerationRequest], execution: Execution
    ) -> float:
        """Return images a second of our engine."""
        generator = ImageGenerator(pipeline, 4 if self.is_miniature else 16, execution)
        image = torch.randint(256, (3, requests[0].resolution, requests[0].resolution))
        pixels = image.to(torch.uint8)
        work = Work(
            plan=ListedRequests(requests),
            plan_of=None,
            prepare=lambda some: pixels.expand(len(some), -1, -1, -1),
            refusal=lambda request: None,
            max_ahead=None,
        )
        try:
            # The first calls record, compile and choose kernels.
            measure_speed(work, generator, seconds=0.1, is_stopping=lambda: False)
            speed = measure_speed(work, generator, seconds=self.seconds, is_stopping=lambda: False)
        finally:
            generator.close()
            pipeline.text_encoder.to(self.device)
        return speed.images_per_s

    def diffusers(
        self, pipeline: Pipeline, requests: Sequence[GenerationRequest], size: int
    ) -> float:
        """Return images a second of diffusers' pipeline, in batches of one strength."""
        settings = pipeline.scheduler.config
        pipeline.scheduler = sampling_scheduler(requests[0].scheduler, settings)
        batches = _batches(requests, size)
        _call(pipeline, next(batches))
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < self.seconds:
            images += _call(pipeline, next(batches))
        rate = images / (time.perf_counter() - started)
        pipeline.scheduler = DDIMScheduler.from_config(settings)
        return rate

    def matrix_tflops(self) -> float:
        """Return the rate of one large matrix product, TFLOP/s."""
        side = 512 if self.is_miniature else 8192
        a = torch.randn(side, side, device=self.device, dtype=self.models.dtype)
        seconds = self._seconds_of(lambda: a @ a)
        return 2 * side**3 / seconds / TERA

    def _seconds_of(self, function: Callable[[], object], repeats: int = 20) -> float:
        function()
        self._synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        self._synchronize()
        return (time.perf_counter() - started) / repeats

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gib(self) -> float:
        """Return the peak of GPU memory since the last call; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def main(argv: Sequence[str]) -> None:
    """Print one table for each model, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument("--miniature", action="store_true", help="the embedded architecture")
    options = parser.parse_args(argv)
    bench = Bench(torch.device(options.device), options.seconds, options.miniature)
    matrix = bench.matrix_tflops()
    print(f"{bench.device}, {bench.models.dtype}, torch {torch.__version__}")
    print(f"matrix product: {matrix:.1f} TFLOP/s\n")
    print("| model, case | px | side | images/s | TFLOP/s | of the product | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for edits in (False, True):
        pipeline = bench.models.pipeline(edits=edits)
        cases = (EDIT,) if edits else CASES
        if bench.is_miniature:
            cases = tuple(replace(c, steps=min(c.steps, MINIATURE_STEPS)) for c in cases)
        for resolution in (32,) if bench.is_miniature else (512, 256):
            for case in cases:
                own = pipeline.vae
                if case.has_tiny_autoencoder:
                    pipeline.vae = bench.models.tiny_autoencoder()
                _print_case(bench, pipeline, case, resolution, matrix)
                pipeline.vae = own
        del pipeline


def _print_case(
    bench: Bench, pipeline: Pipeline, case: Case, resolution: int, matrix: float
) -> None:
    requests = _requests(case, resolution, edits=pipeline.unet.config.in_channels == 8)
    tera = _tera_flop(pipeline, requests, resolution)
    for name, rate in _rates(bench, pipeline, requests):
        speed = rate * tera
        print(
            f"| {case.name} | {resolution} | {name} | {rate:.2f} | {speed:.2f} "
            f"| {speed / matrix:.0%} | {bench.peak_gib():.1f} |",
            flush=True,
        )


def _rates(
    bench: Bench, pipeline: Pipeline, requests: Sequence[GenerationRequest]
) -> Iterator[tuple[str, float]]:
    attentions = ("sdpa",) if bench.device.type == "cpu" else ("sdpa", "xformers")
    executions: tuple[Execution, ...] = ("eager", "graph")
    if bench.device.type == "cuda" and requests[0].num_inference_steps == 25:
        executions = ("eager", "graph", "compile")
    for attention, execution in product(attentions, executions):
        if (attention, execution) == ("xformers", "compile"):
            continue  # xformers' kernels cannot be compiled
        try:
            choose_attention(attention, pipeline, bench.device)  # type: ignore[arg-type]
        except UserError as error:
            print(f"xformers: {error}")
            break
        yield f"ours, {attention}, {execution}", bench.ours(pipeline, requests, execution)
    pipeline.unet.set_default_attn_processor()
    for size in MINIATURE_BATCHES if bench.is_miniature else BATCHES:
        yield f"diffusers, batches of {size}", bench.diffusers(pipeline, requests, size)


def _requests(case: Case, resolution: int, *, edits: bool) -> list[GenerationRequest]:
    one = GenerationRequest(
        method="diff_mix",
        method_version=1,
        source_digest="0" * 32,
        source_label=0,
        target_label=1,
        prompt="a photo of a bird",
        strength=case.strengths[0],
        guidance_scale=case.guidance_scale,
        image_guidance_scale=1.5 if edits else None,
        num_inference_steps=case.steps,
        scheduler="dpmsolver++",
        resolution=resolution,
        variant=0,
        noise_seed=0,
        generator_fingerprint="benchmark",
    )
    strengths = cycle(case.strengths)
    return [replace(one, noise_seed=n, strength=next(strengths)) for n in range(96)]


def _batches(requests: Sequence[GenerationRequest], size: int) -> Iterator[list[GenerationRequest]]:
    # Endless: the most frequent strength of 28 requests ahead, as many as fit into a batch.
    coming = cycle(requests)
    waiting = list(islice(coming, 28))
    while True:
        strengths = [request.strength for request in waiting]
        strength = max(strengths, key=strengths.count)
        batch = [request for request in waiting if request.strength == strength][:size]
        waiting = [request for request in waiting if request not in batch]
        waiting += islice(coming, len(batch))
        yield batch


def _call(pipeline: Pipeline, batch: Sequence[GenerationRequest]) -> int:
    first = batch[0]
    side = first.resolution
    own: dict[str, Any] = {"strength": first.strength}
    if first.image_guidance_scale is not None:
        own = {"image_guidance_scale": first.image_guidance_scale}
    call: Any = pipeline
    made = call(
        prompt=[request.prompt for request in batch],
        image=[Image.new("RGB", (side, side)) for _ in batch],
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[torch_rng(request.noise_seed) for request in batch],
        **own,
    ).images
    return len(made)


@torch.no_grad()
def _tera_flop(pipeline: Pipeline, requests: Sequence[GenerationRequest], resolution: int) -> float:
    unet, side = pipeline.unet, resolution // pipeline.vae_scale_factor
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    place: Any = {"device": unet.device, "dtype": unet.dtype}
    with FlopCounterMode(display=False) as counter:
        unet(
            torch.zeros(1, channels, side, side, **place),
            torch.zeros(1, device=unet.device),
            torch.zeros(1, 77, width, **place),
        )
    calls = [_calls(request) for request in requests]
    return counter.get_total_flops() * sum(calls) / len(calls) / TERA


def _calls(request: GenerationRequest) -> int:
    copies = 1 if request.guidance_scale == 1 else 2
    if request.image_guidance_scale is not None:
        return 3 * request.num_inference_steps
    return copies * int(request.num_inference_steps * request.strength)


if __name__ == "__main__":
    main(sys.argv[1:])
