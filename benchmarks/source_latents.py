"""Whether latents of sources are sooner read back from disk than encoded again.

    python benchmarks/source_latents.py [--images 64] [--rounds 5] [--folder runs] [--large]

In turns, milliseconds an image: the encoder as the engine calls it; the file as the system keeps it
in memory; the file once the system has been asked to forget it, so that the disk itself is read.
The embedded model's encoder at 64 px; `--large`: Stable Diffusion 1.5's with random weights at 256
px too, of which four images are enough.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from online_aug.diffusion.directory import EMBEDDED
from online_aug.generation.vae import MEMORY_BYTES, TOGETHER, Autoencoder, LatentStore, ScratchFile

STABLE_DIFFUSION = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def main(argv: Sequence[str]) -> None:
    """Print one row an encoder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="on the disk in question")
    parser.add_argument("--large", action="store_true", help="minutes on a CPU")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    embedded = AutoencoderKL.from_pretrained(EMBEDDED["image_to_image"], subfolder="vae")
    print("| encoder | KiB an image | encoding, ms | reading, ms | from the disk, ms |")
    print("|---|---|---|---|---|")
    _print_row("embedded, 64 px", embedded, 64, options.images, options)
    if options.large:
        large = AutoencoderKL(**STABLE_DIFFUSION)
        _print_row("Stable Diffusion, 256 px", large, 256, TOGETHER, options)


def _print_row(
    name: str, vae: AutoencoderKL, side: int, count: int, options: argparse.Namespace
) -> None:
    images = torch.randint(256, (count, 3, side, side)).to(torch.uint8)
    scratch = ScratchFile(options.folder, 2**30)
    # With room for one in memory all go to the disk, the last pushed out by a black image.
    _encode(Autoencoder(vae, _store(scratch, memory_bytes=1)), images, torch.zeros_like(images[:1]))
    sides: dict[str, Callable[[], None]] = {
        "encoding": lambda: _encode(Autoencoder(vae), images),
        "reading": lambda: _encode(Autoencoder(vae, _store(scratch)), images),
        "disk": lambda: _encode(Autoencoder(vae, _store(scratch)), images),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in sides}
    for _ in range(options.rounds):
        for kind, read in sides.items():
            if kind == "disk":
                _forget(scratch)
            seconds[kind].append(_timed(read))
    kib = scratch.size_bytes / count / 2**10
    times = " | ".join(f"{1e3 * statistics.median(s) / count:.3f}" for s in seconds.values())
    print(f"| {name} | {kib:.0f} | {times} |", flush=True)
    scratch.close()


def _store(scratch: ScratchFile, memory_bytes: int = MEMORY_BYTES) -> LatentStore:
    store = LatentStore(memory_bytes)
    store.spill_to(scratch)
    return store


def _encode(autoencoder: Autoencoder, *sets: torch.Tensor) -> None:
    for images in sets:
        for group in images.split(TOGETHER):
            autoencoder.encode(group)


def _forget(scratch: ScratchFile) -> None:
    """Ask the system to drop the file from memory; what is not on the disk yet it would keep."""
    assert scratch.file is not None
    os.fsync(scratch.file)
    os.posix_fadvise(scratch.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1:])
