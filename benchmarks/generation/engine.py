"""Measure continuous batching beside the bare network, and beside diffusers' pipelines.

    python -m benchmarks.generation.engine configs/digits_diff_mix.yaml [key=value ...]

All sides make the images of the same requests in the order of the plan, with mixed strengths, in
one process and in turns:

- ours: the whole service, from reading sources to committed records;
- bare: as many calls of U-Net, encoder and decoder at the same shapes and nothing else, with the
  U-Net called as ours calls it, and as diffusers does;
- one by one: a call of diffusers' pipeline for each image, read from and saved to a file, as the
  published scripts do;
- in batches: diffusers' pipeline with batches of one strength, taken from as many requests ahead as
  ours looks, at the batch size that is fastest here.

Targets: at least 0.95 of bare, 3 times one by one, 1.3 times in batches.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from cache import Store
from online_aug.cli.main import parse_command, run_main
from online_aug.console import progress
from online_aug.data.sources import load_splits
from online_aug.data.transforms import fit_square
from online_aug.diffusion.loading import load_adapters, load_img2img
from online_aug.distributed.devices import plan_devices
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.finetuning.run import ensure_finetuned
from online_aug.generation.denoiser import Network
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.inputs import WorkTimes
from online_aug.generation.vae import VAE_BATCH_SIZE
from online_aug.planning import ListedRequests
from online_aug.producer.service import Service
from online_aug.producer.work import Work
from online_aug.request import GenerationRequest
from online_aug.seeding import torch_rng

MIXED = (
    "method.strength=[0.3, 0.5, 0.7, 0.9]",
    "generation.num_inference_steps=25",
    "generation.guidance_scale=7.5",
    "finetune.steps=2",
)
"""Settings of the measured plan; the quality of the fine-tuning does not change the speed."""
IMAGES = 48
ROUNDS = 2
BATCH_SIZES = (4, 8, 16)


class NoTrainer:
    """Takes the trainer's place, which nobody needs here."""

    served = 0
    is_stopping = False
    saliency_version = None
    class_losses = None

    def tell(self, status: object) -> None:
        """Ignore the status."""


class Bench:
    """One experiment, a model for each side, and the requests of all sides."""

    def __init__(self, experiment: Experiment, generator: ImageGenerator) -> None:
        self.requests = list(experiment.plan[:IMAGES])
        self.generator = generator
        self.commit_time = WorkTimes("commit")
        self._experiment = experiment
        self._sources = SourceImages(experiment.splits.train, experiment.data.sources)
        self._pipeline = self._stock_pipeline()
        self.recorded = Network(self._pipeline.unet, "graph")
        self.eager = Network(self._pipeline.unet, "eager")

    def ours(self) -> None:
        """Run the service into an empty cache."""
        self.generator.times.reset()
        self.commit_time.reset()
        with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
            self._count_commits(store)
            work = Work(
                plan=ListedRequests(self.requests),
                plan_of=None,
                prepare=lambda some: torch.stack([self._source(request) for request in some]),
                refusal=lambda request: None,
                max_ahead=None,
            )
            Service(work, store, self.generator, NoTrainer()).run()
            assert len(store) == len(self.requests)

    @torch.no_grad()
    def bare(self, network: Network) -> None:
        """Repeat the network calls of the last `ours`, on tensors of its shapes."""
        pipeline, slots = self._pipeline, self.generator.slots
        side = pipeline.unet.config.sample_size
        latents = torch.randn(2 * slots, 4, side, side)
        words, width = pipeline.tokenizer.model_max_length, pipeline.unet.config.cross_attention_dim
        prompts = torch.randn(2 * slots, words, width)
        pixels = torch.randn(
            VAE_BATCH_SIZE, 3, *[self._experiment.config.generation.resolution] * 2
        )
        for _ in range(self.generator.times.counts["denoise"]):
            network(latents, torch.full((2 * slots,), 500.0), prompts, None)
        for _ in range(len({r.source_digest for r in self.requests}) // VAE_BATCH_SIZE):
            pipeline.vae.encode(pixels)
        for _ in range(len(self.requests) // VAE_BATCH_SIZE):
            pipeline.vae.decode(latents[:VAE_BATCH_SIZE])

    def one_by_one(self) -> None:
        """Work as the published scripts do: read a file, make a call, write a file."""
        with tempfile.TemporaryDirectory() as folder:
            for number, request in enumerate(self.requests):
                image = self._call([request])[0]
                image.save(Path(folder) / f"{number}.png")

    def in_batches(self, size: int) -> None:
        """Make a batch of the most frequent strength among the next requests, again and again."""
        ahead = self.generator.slots + 3 * VAE_BATCH_SIZE
        waiting, rest = list(self.requests[:ahead]), list(self.requests[ahead:])
        while waiting:
            strengths = [request.strength for request in waiting]
            strength = max(strengths, key=strengths.count)
            batch = [request for request in waiting if request.strength == strength][:size]
            self._call(batch)
            waiting = [request for request in waiting if request not in batch]
            waiting += [rest.pop(0) for _ in range(min(len(batch), len(rest)))]

    def _call(self, batch: Sequence[GenerationRequest]) -> list[Image.Image]:
        images: list[Image.Image] = self._pipeline(
            prompt=[request.prompt for request in batch],
            image=[Image.fromarray(self._source(r).permute(1, 2, 0).numpy()) for r in batch],
            strength=batch[0].strength,
            num_inference_steps=batch[0].num_inference_steps,
            guidance_scale=batch[0].guidance_scale,
            generator=[torch_rng(request.noise_seed) for request in batch],
        ).images
        return images

    def _source(self, request: GenerationRequest) -> torch.Tensor:
        return fit_square(self._sources.by_digest(request.source_digest), request.resolution)

    def _stock_pipeline(self) -> StableDiffusionImg2ImgPipeline:
        pipeline = load_img2img(
            self._experiment.diffusion.model,
            self._experiment.diffusion.dtype,
            self._experiment.diffusion.vae,
        )
        if self._experiment.diffusion.adapters:
            load_adapters(pipeline, self._experiment.diffusion.adapters)
        known = pipeline.scheduler.config
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(known)
        return pipeline.to(self._experiment.device)

    def _count_commits(self, store: Store) -> None:
        put_many = store.put_many

        def counted(entries: Any) -> int:
            with self.commit_time.of("commit"):
                return put_many(entries)

        store.put_many = counted  # type: ignore[method-assign]


def main(argv: Sequence[str]) -> None:
    """Print the ratios, and where the time of ours went."""
    command = parse_command(
        [*argv[:1], *MIXED, *argv[1:]],
        prog="python -m benchmarks.generation.engine",
        summary="Measure the generation engine beside diffusers' pipelines.",
    )
    config = command.load_config()
    devices = plan_devices(config.devices)
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    ensure_finetuned(experiment)
    bench = Bench(
        experiment,
        ImageGenerator.load(
            experiment.diffusion.model,
            experiment.diffusion.adapters,
            config.generation,
            experiment.diffusion.dtype,
            experiment.device,
        ),
    )
    best = _best_batch(bench)
    sides: dict[str, Callable[[], None]] = {
        "ours": bench.ours,
        "bare, recorded": lambda: bench.bare(bench.recorded),
        "bare, eager": lambda: bench.bare(bench.eager),
        "one by one": bench.one_by_one,
        "in batches": lambda: bench.in_batches(best),
    }
    bench.ours()  # records its calls
    bench.bare(bench.recorded)
    seconds = _in_turns(sides)
    print(f"\n{len(bench.requests)} images, {bench.generator.slots} slots, batches of {best}, ")
    print(f"{torch.get_num_threads()} threads; medians over {ROUNDS} rounds\n")
    print("| side | images/s | ours is so many times as fast |\n|---|---|---|")
    for name in sides:
        ratios = [
            theirs / ours for ours, theirs in zip(seconds["ours"], seconds[name], strict=True)
        ]
        speed = len(bench.requests) / statistics.median(seconds[name])
        print(f"| {name} | {speed:.2f} | {statistics.median(ratios):.2f} |")
    _print_times(bench, seconds["ours"][-1])
    bench.generator.close()


def _best_batch(bench: Bench) -> int:
    times = {size: _timed(lambda size=size: bench.in_batches(size)) for size in BATCH_SIZES}
    rows = ", ".join(f"{size}: {len(bench.requests) / s:.2f}" for size, s in times.items())
    print(f"images/s in batches of {rows}")
    return min(times, key=times.__getitem__)


def _in_turns(sides: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with progress("rounds", ROUNDS * len(sides)) as bar:
        for _ in range(ROUNDS):
            for name, side in sides.items():
                seconds[name].append(_timed(side))
                bar.advance(1)
    return seconds


def _timed(side: Callable[[], None]) -> float:
    started = time.perf_counter()
    side()
    return time.perf_counter() - started


def _print_times(bench: Bench, total: float) -> None:
    spent = bench.generator.times.seconds | bench.commit_time.seconds
    print("\nof the last round of ours (threads overlap, so that the sum may be over 100 %):")
    print(", ".join(f"{kind} {seconds / total:.0%}" for kind, seconds in spent.items()))


if __name__ == "__main__":
    run_main(main)
