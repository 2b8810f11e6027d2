"""Compare OnlineAugLoader on a warm cache with a DataLoader over torchvision's ImageFolder.

    python -m benchmarks.data.loader_speed [--images 256] [--codec webp_lossless] [--resolution 256]
        [--workers 0] [--turns 7] [--paste]

Both read JPEGs of 500 x 375 px, transform them alike (to 224 px) and take turns. ImageFolder reads
by Pillow, as it does by default; a third side is a DataLoader with our decoder. At p = 0.5 every
second slot is a generated image from the cache. The last line is what the main process spends on
planning and accounting, a sample: the time of its own thread while workers do the rest, and that of
the sampler alone.

With `--paste` the loader without synthetic images takes turns with two that paste: every second
image, and all.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor

from benchmarks._timing import faster, in_turns, rate
from cache import Entry, Store
from online_aug.config import Config
from online_aug.config.sections import MixingConfig
from online_aug.data.folders import folder_splits
from online_aug.data.image_sets import ImageSet
from online_aug.data.settings import DataConfig
from online_aug.data.transforms import train_transform
from online_aug.experiment.images import BoundCompose, ComposedSamples
from online_aug.loader.back_pressure import BackPressure
from online_aug.loader.dataset import MixedDataset
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import SamplePool
from online_aug.loader.sampler import BatchSampler, Mixing
from online_aug.loader.slots import Order, order_of
from online_aug.methods import METHODS, MethodContext, Part, Source, make_method
from online_aug.planning import Images, Plan, Served
from online_aug.saliency import SaliencyTable
from online_aug.seeding import torch_rng

BATCH_SIZE, CLASSES = 32, 8
IMAGE_FOLDER = "DataLoader, ImageFolder"
DATA = DataConfig(
    image_size=224,
    resize_px=256,
    crop="random",
    hflip=0.5,
    shift=0,
    rotate_degrees=0,
    scale=(1, 1),
)


class SameDecoder(Dataset[tuple[torch.Tensor, int]]):
    """A data set as one would write it without us: decode, transform, label."""

    def __init__(self, images: ImageSet) -> None:
        self._images, self._transform = images, RandomTransform()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = torch.from_numpy(self._images.load(index)).permute(2, 0, 1)
        return self._transform(pixels), int(self._images.labels[index])


class RandomTransform:
    """The loader's transform, seeded by PyTorch's global generator."""

    def __init__(self) -> None:
        self._transform = train_transform(DATA)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the image as the classifier sees it."""
        return self._transform(pixels, torch_rng(int(torch.randint(2**62, ()))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--codec", default="webp_lossless")
    parser.add_argument("--resolution", type=int, default=256, help="of the generated images, px")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--paste", action="store_true", help="measure images pasted in the loader")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "cache", codec=options.codec) as store,
    ):
        images = write_images(Path(folder) / "images", options.images, options.classes)
        if options.paste:
            _print_paste(images, store, options.workers, options.turns)
            return
        plan, part = _fill(store, images, options.resolution)
        loaders = {
            f"p = {share:g}": _loader(images, store, plan, part, share, options.workers)
            for share in (0.0, 0.5, 1.0)
        }
        folder_set = ImageFolder(
            Path(folder) / "images", transform=Compose([pil_to_tensor, RandomTransform()])
        )
        plain = {IMAGE_FOLDER: folder_set, "DataLoader, our decoder": SameDecoder(images)}
        sides = {name: _epoch(_plain(data, options.workers)) for name, data in plain.items()}
        sides |= {name: _epoch(loader) for name, loader in loaders.items()}
        seconds = in_turns(sides, options.turns)
        served = len(images) // BATCH_SIZE * BATCH_SIZE
        for name in sides:
            line = f"{name}: {rate(seconds, name, served):,.0f} images/s"
            ratio = f", {faster(seconds, name, IMAGE_FOLDER):.2f} of {IMAGE_FOLDER}"
            sys.stdout.write(line + (ratio if name != IMAGE_FOLDER else "") + "\n")
        _print_main_process(images, store, plan, part)


PLAIN = "no synthetic images"


def _print_paste(images: ImageSet, store: Store, workers: int, turns: int) -> None:
    samples = _pasted_samples(images)
    sides = {PLAIN: _epoch(_loader(images, store, [], None, 0.0, workers))}
    for share in (0.5, 1.0):
        loader = _loader(images, store, [], samples, share, workers)
        sides[f"paste, p = {share:g}"] = _epoch(loader)
    seconds = in_turns(sides, turns)
    served = len(images) // BATCH_SIZE * BATCH_SIZE
    for name in sides:
        ratio = f", {faster(seconds, name, PLAIN):.2f} of {PLAIN}" if name != PLAIN else ""
        sys.stdout.write(f"{name}: {rate(seconds, name, served):,.0f} images/s{ratio}\n")


def _pasted_samples(images: ImageSet) -> ComposedSamples:
    """Return samples by maps with a soft spot in each, as large as those of a folder of masks."""
    sources = _sources(images)
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:64, :64] / 63
    spots = {
        source.digest: np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.04)
        for source, (cy, cx) in zip(sources, rng.uniform(0.3, 0.7, (len(sources), 2)), strict=True)
    }
    table = SaliencyTable.from_maps("benchmark", spots)
    settings = METHODS["paste"].Settings(name="paste", max_union_share=1.0)
    context = replace(_context(images, 64), saliency=table)
    table.source_share(0)  # the workers share what it makes
    return ComposedSamples(
        images=images,
        sources=sources,
        places={source.digest: place for place, source in enumerate(sources)},
        parts=[Part(method=make_method(settings), context=context)],
    )


def _print_main_process(images: ImageSet, store: Store, plan: Plan, part: Part) -> None:
    loader = _loader(images, store, plan, part, 0.5, workers=1)
    next(iter(loader))  # the worker starts
    spent_s, served = _thread_time(lambda: list(loader)), len(loader) * BATCH_SIZE
    sampler_s = _thread_time(lambda: list(_sampler(images, store, plan, 0.5)))
    sys.stdout.write(
        f"main process: {1000 * spent_s / served:.3f} ms a sample, "
        f"{1000 * sampler_s / served:.3f} ms of them the sampler's\n"
    )


def _thread_time(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _plain(data: Dataset[Any], workers: int) -> Iterable[Any]:
    return DataLoader(
        data, BATCH_SIZE, shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip


def _epoch(loader: Iterable[Any]) -> Callable[[int], object]:
    return lambda turn: sum(1 for _ in loader)


def write_images(folder: Path, count: int, classes: int = CLASSES) -> ImageSet:
    """Return noise like a photograph's, equally strong at every scale."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class_{number % classes:05d}"
        place.mkdir(parents=True, exist_ok=True)
        _picture(rng, 500, 375).save(place / f"{number}.jpg", quality=90)
    return folder_splits(folder)["train"]


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    total = np.zeros((height, width, 3))
    for side in (4, 8, 16, 32, 64, 128):
        grid = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        large = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), float) - 127.5
        total += large * 4 / side
    return Image.fromarray((127.5 + total * 0.6).clip(0, 255).astype(np.uint8))


def _sources(images: ImageSet) -> list[Source]:
    return [
        Source(digest=images.digest(index), label=int(label))
        for index, label in enumerate(images.labels)
    ]


def _context(images: ImageSet, resolution: int) -> MethodContext:
    return MethodContext(
        prompts=tuple(f"a photo of a {name}" for name in images.class_names),
        class_sizes=tuple(np.bincount(images.labels, minlength=len(images.class_names)).tolist()),
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        num_inference_steps=25,
        scheduler="ddim",
        resolution=resolution,
        seed=0,
        generator_fingerprint="benchmark",
    )


def _fill(store: Store, images: ImageSet, resolution: int) -> tuple[Plan, Part]:
    sources, context = _sources(images), _context(images, resolution)
    settings = METHODS["diff_mix"].Settings(name="diff_mix", strength=(0.7,))
    part = Part(method=make_method(settings), context=context)
    plan = Plan([part], Images.of(sources), 1)
    rng = np.random.default_rng(1)
    for request in plan:
        picture = np.asarray(_picture(rng, resolution, resolution))
        store.put_many([Entry(request.to_fields(), picture)])
    return plan, part


def _sampler(
    images: ImageSet,
    store: Store,
    plan: Plan,
    share: float,
    composed_share: float = 0.0,
) -> BatchSampler:
    order = replace(_order(images, share), composed_share=composed_share)
    pool = SamplePool(Served([plan]), store)
    mixing = MixingConfig(synthetic_probability=share)
    return BatchSampler(order, pool, Mixing(order, pool, mixing))


def _order(images: ImageSet, share: float) -> Order:
    return order_of(
        Config.model_validate(
            {"mixing": {"synthetic_probability": share}, "optim": {"batch_size": BATCH_SIZE}}
        ),
        images,
    )


def _loader(
    images: ImageSet,
    store: Store,
    plan: Plan,
    maker: Part | ComposedSamples | None,
    share: float,
    workers: int,
) -> OnlineAugLoader:
    composed = maker if isinstance(maker, ComposedSamples) else None
    sampler = _sampler(images, store, plan, share, 0.0 if composed is None else 1.0)
    dataset = MixedDataset(
        images=images,
        plan=sampler.pool.requests,
        places={images.digest(index): index for index in range(len(images))},
        compose=BoundCompose({"diff_mix": maker}) if isinstance(maker, Part) else None,
        compose_alone=composed,
        store=store,
        transform=train_transform(DATA),
        seed=0,
        skips_bad_images=False,
    )
    return OnlineAugLoader(
        dataset,
        sampler,
        workers=workers,
        pin_memory=False,
        pressure=BackPressure(sampler.pool),
        ledger=None,
    )


if __name__ == "__main__":
    main()
