"""Measure how often the generator reaches the target class, for several strengths.

    python -m benchmarks.generation.target_reached configs/digits_diff_mix.yaml [key=value ...]

Translates training digits towards other classes with the experiment's fine-tuned model, and asks an
independent judge which class each result shows. The judge knows digits only.
"""

import sys
from collections.abc import Sequence

import torch

from benchmarks.generation._digit_judge import accuracy, classes_seen, train_judge
from online_aug.cli.main import parse_command, run_main
from online_aug.console import progress
from online_aug.data.sources import load_splits
from online_aug.data.transforms import fit_square
from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.finetuning.run import ensure_finetuned
from online_aug.generation.engine import ImageGenerator
from online_aug.methods import make_method
from online_aug.seeding import numpy_rng

STRENGTHS = (0.3, 0.5, 0.7, 0.9, 1.0)
IMAGES_PER_STRENGTH = 200
IMAGES_TOGETHER = 50


def main(argv: Sequence[str]) -> None:
    """Print for each strength how often the judge sees the source and the target class."""
    command = parse_command(
        argv,
        prog="python -m benchmarks.generation.target_reached",
        summary="Judge the generator.",
    )
    config = command.load_config()
    if config.data.source != "digits":
        raise UserError(
            f"data.source must be digits, the judge's only set, got {config.data.source}"
        )
    devices = plan_devices(config.devices)
    experiment = Experiment(config, load_splits(config.data), devices.generator)
    ensure_finetuned(experiment)
    judge = train_judge()
    sys.stdout.write(f"judge: {accuracy(judge, 'test'):.1%} of real test digits\n\n")
    sys.stdout.write("| strength | still the source class | target class reached | neither |\n")
    sys.stdout.write("|---|---|---|---|\n")
    for strength, (source, target) in _rates(experiment, judge).items():
        row = f"| {strength} | {source:.0%} | {target:.0%} | {1 - source - target:.0%} |\n"
        sys.stdout.write(row)


def _rates(experiment: Experiment, judge: torch.nn.Module) -> dict[float, tuple[float, float]]:
    generation = experiment.config.generation
    generator = ImageGenerator.load(
        experiment.diffusion.model,
        experiment.diffusion.adapters,
        generation,
        experiment.diffusion.dtype,
        experiment.device,
    )
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    rates = {}
    with progress("generating", len(STRENGTHS) * IMAGES_PER_STRENGTH) as bar:
        for strength in STRENGTHS:
            requests = _requests(experiment, strength)
            made = []
            for start in range(0, len(requests), IMAGES_TOGETHER):
                batch = requests[start : start + IMAGES_TOGETHER]
                sources = [
                    fit_square(images.by_digest(r.source_digest), generation.resolution)
                    for r in batch
                ]
                made.append(generator.generate(batch, torch.stack(sources)))
                bar.advance(len(batch))
            seen = classes_seen(judge, torch.cat(made) * 255)
            sources = torch.tensor([r.source_label for r in requests])
            targets = torch.tensor([r.target_label for r in requests])
            rates[strength] = (
                float((seen == sources).float().mean()),
                float((seen == targets).float().mean()),
            )
    return rates


def _requests(experiment: Experiment, strength: float) -> list:
    rng = numpy_rng("drift", int(strength * 1000))
    context = experiment.contexts["diff_mix"]
    settings = experiment.methods["diff_mix"].settings
    method = make_method(settings.model_copy(update={"strength": (strength,)}))
    requests: list = []
    while len(requests) < IMAGES_PER_STRENGTH:
        source = experiment.data.sources[int(rng.integers(len(experiment.data.sources)))]
        request = method.plan(source, len(requests), context, rng)
        if request.target_label != request.source_label:
            requests.append(request)
    return requests


if __name__ == "__main__":
    run_main(main)
