"""Measure what keeping freed memory gives a classifier that computes on the CPU.

    python -m benchmarks.training.kept_memory efficientnet_lite2 --size 224 --forward

Processes take turns: with glibc's defaults, and with `online_aug.cores.keep_freed_memory`, as ours
compute. Printed are images a second of processor time and the pages that a step had to ask the
system for, medians over the rounds, and the ratio of the rates.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import timm
import torch

from online_aug.console import progress
from online_aug.cores import keep_freed_memory

SIDES = ("glibc's defaults", "kept")
STEPS = 6


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each side, then the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", help="a name of timm's")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--forward", action="store_true", help="bfloat16 without training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        print(json.dumps(_measured(options)))
        return
    command = [sys.executable, "-m", "benchmarks.training.kept_memory", *(argv or sys.argv[1:])]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with progress("processes", options.rounds * len(SIDES)) as bar:
        for _ in range(options.rounds):
            for side in SIDES:
                output = subprocess.check_output([*command, "--side", side], text=True)
                found[side].append(json.loads(output))
                bar.advance(1)
    for side, lines in found.items():
        middle = {key: statistics.median(line[key] for line in lines) for key in lines[0]}
        print(f"{side}: {middle['rate']:.1f} images/s, {middle['pages']:,.0f} pages a step")
    pairs = zip(*(found[side] for side in SIDES), strict=True)
    ratios = [kept["rate"] / default["rate"] for default, kept in pairs]
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _measured(options: argparse.Namespace) -> dict[str, float]:
    """Take the steps of one side in this process."""
    if options.side != SIDES[0]:
        keep_freed_memory("cpu")
    torch.set_num_threads(1)
    model = timm.create_model(options.classifier, num_classes=10)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        if options.forward:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                model(images)
            return
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train(not options.forward)
    step()
    start_s, pages = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        step()
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    rate = STEPS * options.batch_size / (time.process_time() - start_s)
    return {"rate": rate, "pages": pages / STEPS}


if __name__ == "__main__":
    main()
