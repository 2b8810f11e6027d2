"""Measure Grad-CAM in forward passes of the classifier and against pytorch_grad_cam.

    python benchmarks/saliency/speed.py [DEVICE] [BATCH_SIZE]

Random weights, 224 px, medians over interleaved rounds. Ours runs through a copy that is prepared
once for each version of a teacher; the column "once" is its cost with its first two batches.
Targets: at most 1.2 forward passes on a CNN and 1.5 on a ViT, at least 4 times as fast as
pytorch_grad_cam on the same batch.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import timm
import torch
from torch import Tensor, nn

from online_aug.saliency import grad_cam, quick_copy, upscaled
from online_aug.saliency.grad_cam import library_grad_cam, spare_copy

SIDE_PX = 224
ROUNDS = 5
HEADS = ("classifier", "forward, ms", "ours, ms", "forwards", "library, ms", "ratio", "once, ms")
MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "resnet50": lambda model: model.layer4[-1],
    "convnext_tiny": lambda model: model.stages[-1],
    "vit_small_patch16_224": lambda model: model.blocks[-1].norm1,
}


def main(argv: Sequence[str]) -> None:
    """Print one row for each model."""
    device = torch.device(argv[0] if argv else "cuda" if torch.cuda.is_available() else "cpu")
    batch_size = int(argv[1]) if len(argv) > 1 else 8
    print(f"{device}, batch of {batch_size}, {torch.get_num_threads()} threads\n")
    print(f"| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    for name in MODELS:
        once, forward, ours, library = _measure(name, device, batch_size)
        print(
            f"| {name} | {forward:.0f} | {ours:.0f} | {ours / forward:.2f} "
            f"| {library:.0f} | {library / ours:.1f} | {once:.0f} |"
        )


def _measure(name: str, device: torch.device, batch_size: int) -> list[float]:
    """Return the milliseconds of preparation, a forward pass, our maps, and the library's."""
    model = timm.create_model(name).to(device).eval()
    spare = spare_copy(model)
    images = torch.randn(batch_size, 3, SIDE_PX, SIDE_PX, device=device)
    labels = torch.arange(batch_size, device=device)
    reshape = _patches if name.startswith("vit") else None

    def forward() -> None:
        with torch.no_grad():
            model(images)

    looking = model

    def ours() -> None:
        upscaled(grad_cam(looking, images, labels), (SIDE_PX, SIDE_PX))

    def prepare() -> None:
        nonlocal looking
        looking = quick_copy(model)
        ours()  # of this shape for the first time
        ours()  # and recorded

    def library() -> None:
        library_grad_cam(spare, images, labels, MODELS[name](spare), reshape)

    once = _milliseconds(prepare, device)
    tasks = (forward, ours, library)
    rounds = [[_milliseconds(task, device) for task in tasks] for _ in range(ROUNDS + 1)]
    return [once, *(statistics.median(times) for times in zip(*rounds[1:], strict=True))]


def _milliseconds(task: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started)


def _patches(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (14, 14))


if __name__ == "__main__":
    main(sys.argv[1:])
