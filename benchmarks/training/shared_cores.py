"""Measure how a setting of waiting threads makes two trainings on the same cores slow each other.

    python -m benchmarks.training.shared_cores test_resnet --size 64 --batch-size 16

Each setting of libgomp's is measured alone and with two processes at once, every process with all
usable cores: images a second of wall time. The last column is the second over the first.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import timm
import torch

from online_aug.console import progress
from online_aug.cores import SPINS, THREADS, WAITING, usable_cores

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's own": {},
    f"ours ({WAITING[0]}={SPINS})": {WAITING[0]: SPINS},
    f"{WAITING[1]}=passive": {WAITING[1]: "passive"},
    f"{THREADS}=1": {THREADS: "1"},
}
"""The environment of each side."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", help="a name of timm's")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(_images_per_s(options))
        return
    words = [*(argv or sys.argv[1:]), "--measure"]
    lines = []
    with progress("measurements", 2 * len(SETTINGS)) as bar:
        for name, setting in SETTINGS.items():
            rates = []
            for count in (1, 2):
                rates.append(_rate(words, setting, count))
                bar.advance(1)
            lines.append(
                f"{name}: {rates[0]:.0f} alone, {rates[1]:.0f} each of two, "
                f"{rates[1] / rates[0]:.2f}"
            )
    print("\n".join(lines))


def _rate(words: Sequence[str], setting: Mapping[str, str], count: int) -> float:
    """Return the mean images a second of some processes at once."""
    plain = {name: value for name, value in os.environ.items() if name not in (*WAITING, THREADS)}
    command = [sys.executable, "-m", "benchmarks.training.shared_cores", *words]
    started = [
        subprocess.Popen(command, env=plain | setting, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    return sum(float(line) for line in said) / count


def _images_per_s(options: argparse.Namespace) -> float:
    """Train on noise until the time is over, after one step that is not counted."""
    torch.set_num_threads(int(os.environ.get(THREADS, usable_cores())))
    model = timm.create_model(options.classifier, num_classes=10)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size) % 10
    optimizer = torch.optim.AdamW(model.parameters())
    steps = -1
    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < options.seconds:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        steps += 1
        if steps == 0:
            started = time.perf_counter()
    return steps * options.batch_size / passed


if __name__ == "__main__":
    main()
