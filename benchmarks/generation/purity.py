"""Measure what the gate lets through: how many images of a plan show another class.

    python -m benchmarks.generation.purity configs/quickstart.yaml [key=value ...]

Makes the images of the plan that the cache lacks, with all that comes before, and asks an
independent judge, trained on all training digits, what each shows. The judge knows digits only.
"""

import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.generation._digit_judge import accuracy, classes_seen, train_judge
from online_aug.cli.main import parse_command, run_main
from online_aug.console import percent
from online_aug.data.sources import load_splits
from online_aug.diffusion.compatibility import settle
from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.loader.pool import open_store
from online_aug.processes import Interrupt
from online_aug.producer.filling import make_missing
from online_aug.producer.preparation import prepare_generation
from online_aug.request import GenerationRequest
from online_aug.seeding import numpy_rng


def main(argv: Sequence[str]) -> None:
    """Print the shares of a plan's images that are rejected, and of the others that are wrong."""
    command = parse_command(
        argv, prog="python -m benchmarks.generation.purity", summary="Judge what the gate accepts."
    )
    config = command.load_config()
    if config.data.source != "digits":
        raise UserError(
            f"data.source must be digits, the judge's only set, got {config.data.source}"
        )
    devices = plan_devices(config.devices, trains=False)
    torch.set_num_threads(devices.generate_threads)
    experiment = Experiment(settle(config), load_splits(config.data), devices.generator)
    experiment.check(generates=True)
    prepare_generation(experiment)
    with open_store(config, experiment.splits.train) as store, Interrupt() as interrupt:
        make_missing(experiment, store, interrupt)
        found = [(request, store.get(request.key)) for request in experiment.plan]
    made = [(request, record.image) for request, record in found if record is not None]
    judge = train_judge()
    sys.stdout.write(f"judge: {accuracy(judge, 'test'):.1%} of real test digits\n")
    sys.stdout.write(f"images: {len(made)} of {len(found)} accepted\n")
    sys.stdout.write(f"gate: {experiment.plan[0].gate_version}\n")
    seen = classes_seen(judge, torch.from_numpy(np.stack([i for _, i in made])).permute(0, 3, 1, 2))
    sys.stdout.writelines(f"{line}\n" for line in _rows(experiment, made, seen.tolist()))


def _rows(experiment: Experiment, made: list, seen: list[int]) -> list[str]:
    requests = [request for request, _ in made]
    counts = Counter(
        "target" if s == r.target_label else "source" if s == r.source_label else "neither"
        for s, r in zip(seen, requests, strict=True)
    )
    mass = [_label(experiment, *one)[s] for one, s in zip(made, seen, strict=True)]
    strengths = Counter(request.strength for request in requests)
    mean = sum(request.strength for request in requests) / len(requests)
    listed = ", ".join(f"{strength:g}: {count}" for strength, count in sorted(strengths.items()))
    return [
        *(f"shows {name}: {percent(counts[name] / len(made))}" for name in sorted(counts)),
        f"label on the class that is seen: {float(np.mean(mass)):.3f}",
        f"strength: {mean:.2f} on average ({listed})",
    ]


def _label(experiment: Experiment, request: GenerationRequest, image: np.ndarray) -> np.ndarray:
    method, context = experiment.methods[request.method], experiment.context_for(request)
    return method.compose(lambda: image, image, request, context, numpy_rng("purity"))[1]


if __name__ == "__main__":
    run_main(main)
