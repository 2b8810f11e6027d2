"""Whether the check of a network and an image size tells the truth, for every family of timm.

    python -m benchmarks.classifier_sizes [--first 0] [--count 98] [--most-parameters 40]

Of each module of timm's models a small one is taken, at five sizes near its own. The check that a
run makes before anything starts is compared with a step of two images on the CPU. Wrong is a size
that passes and then fails, or is refused and works: exit status 1.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import timm
import torch

from online_aug.classifier.fit import check_fit
from online_aug.classifier.model import build_classifier
from online_aug.config.training import ClassifierConfig
from online_aug.console import counted
from online_aug.errors import UserError, first_line

CLASSES, IMAGES = 5, 2
CANDIDATES = 4
SMALL = ("test", "atto", "femto", "pico", "nano", "micro", "tiny", "xx", "xs", "_s", "small", "18")
"""Parts of names that small networks have, the most telling first."""
DEFAULT_SIDE_PX = 224


def main(argv: Sequence[str] | None = None) -> int:
    """Try the families, print each outcome that is wrong and the counts of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first family")
    parser.add_argument("--count", type=int, default=1000, help="families to try")
    parser.add_argument("--most-parameters", type=float, default=40, help="millions; skip larger")
    options = parser.parse_args(argv)
    families = timm.list_modules()[options.first :][: options.count]
    outcomes, tried = Counter[str](), 0
    for family in counted("trying families", families):
        name = smallest(family)
        if name is None or parameters(name) > options.most_parameters * 1e6:
            outcomes["family skipped: too large, or no classifier"] += 1
            continue
        tried += 1
        for size in sizes_near(own_size(name)):
            outcome = outcome_of(name, size)
            outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith("WRONG"):
                sys.stdout.write(f"{name} at {size} px: {outcome}\n")
                sys.stdout.flush()
    for outcome, count in sorted(outcomes.items()):
        sys.stdout.write(f"{count:5d} x {outcome}\n")
    sys.stdout.write(f"{tried} families tried\n")
    return int(any(outcome.startswith("WRONG") for outcome in outcomes))


def smallest(family: str) -> str | None:
    """Return the smallest of a few models of a module that look small; None without one."""
    names = sorted(timm.list_models(module=family), key=_by_look)[:CANDIDATES]
    sized = {name: parameters(name) for name in names}
    usable = {name: count for name, count in sized.items() if count < float("inf")}
    return min(usable, key=lambda name: usable[name], default=None)


def _by_look(name: str) -> tuple[int, int]:
    return next((n for n, part in enumerate(SMALL) if part in name), len(SMALL)), len(name)


def parameters(name: str) -> float:
    """Return how many weights a model has; infinite if it cannot be built as a classifier."""
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=CLASSES)
    except Exception:  # whatever a model of another kind raises
        return float("inf")
    return float(sum(weight.numel() for weight in network.parameters()))


def own_size(name: str) -> int:
    """Return the side of the images that a model was made for."""
    cfg = timm.get_pretrained_cfg(name)
    return cfg.input_size[-1] if cfg is not None else DEFAULT_SIDE_PX


def sizes_near(own: int) -> Iterator[int]:
    """Yield five sizes: its own, a stride smaller, a little larger, larger, and far larger."""
    yield from (own, max(32, own - 32), own + 26, own + 58, round(own * 1.4 / 2) * 2)


def outcome_of(name: str, size: int) -> str:
    """Compare the check with a step of training."""
    config = ClassifierConfig(name=name)
    try:
        check_fit(config, CLASSES, size)
        refusal = None
    except UserError as error:
        refusal = str(error)
    failure = _failure(config, size)
    if refusal is None:
        return f"WRONG, passes and fails: {failure}" if failure else "passes and works"
    return "refused and fails" if failure else f"WRONG, refused and works: {refusal}"


def _failure(config: ClassifierConfig, size: int) -> str | None:
    try:
        network = build_classifier(config, CLASSES, image_size=size).train()
        network(torch.rand(IMAGES, 3, size, size)).sum().backward()
    except Exception as error:  # the point is to see what networks raise
        return first_line(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
