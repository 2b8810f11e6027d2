"""Does augmentation make a classifier harder to disturb?

Finished runs are judged on the same test images: as they are, with adversarial noise (FGSM,
arXiv:1412.6572), and with common corruptions in the manner of ImageNet-C (arXiv:1903.12261), our
own small ones.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from online_aug.classifier.model import input_statistics
from online_aug.config import Config
from online_aug.console import counted
from online_aug.data.image_sets import Subset, ordered_batches
from online_aug.data.sources import load_splits
from online_aug.data.transforms import eval_transform
from online_aug.errors import UserError
from online_aug.seeding import numpy_rng, torch_rng
from online_aug.studies import Study
from online_aug.studies.frame.answers import (
    Chart,
    Interval,
    Row,
    draw_bars,
    markdown_table,
    share,
    write_answer,
)
from online_aug.studies.frame.images import add_draw_options
from online_aug.studies.frame.runs import FinishedRun, add_runs_option, finished_runs
from online_aug.studies.frame.sheet import Cell, draw_sheet

IMAGES, SHOWN = 500, 4
EPSILONS = (1, 2, 4, 8)
"""Largest changes of a pixel by FGSM, grey levels of 255."""
Images = UInt8[Tensor, "b 3 s s"]


def _noise(images: Images, severity: int) -> Images:
    noise = torch.randn(images.shape, generator=torch_rng(severity)) * (8, 16, 32)[severity]
    return _bytes(images.float() + noise)


def _blur(images: Images, severity: int) -> Images:
    sigma = images.shape[-1] * (0.015, 0.03, 0.06)[severity]
    blurred: Tensor = transforms.gaussian_blur(images, [2 * int(3 * sigma) + 1] * 2, [sigma] * 2)
    return blurred


def _contrast(images: Images, severity: int) -> Images:
    changed: Tensor = transforms.adjust_contrast(images, (0.6, 0.4, 0.2)[severity])
    return changed


def _brightness(images: Images, severity: int) -> Images:
    return _bytes(images.float() + (32, 64, 96)[severity])


def _pixels(images: Images, severity: int) -> Images:
    side = images.shape[-1]
    small = transforms.resize(images, [max(4, int(side * (0.6, 0.4, 0.25)[severity]))] * 2)
    large: Tensor = transforms.resize(
        small, [side] * 2, interpolation=transforms.InterpolationMode.NEAREST
    )
    return large


def _rgb(decoded: np.ndarray | None) -> np.ndarray:
    assert decoded is not None  # it was encoded here
    return decoded[..., ::-1]


def _jpeg(images: Images, severity: int) -> Images:
    quality = [cv2.IMWRITE_JPEG_QUALITY, (40, 20, 8)[severity]]
    coded = []
    for image in images.permute(0, 2, 3, 1).numpy():
        _, content = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), quality)
        coded.append(np.ascontiguousarray(_rgb(cv2.imdecode(content, cv2.IMREAD_COLOR))))
    return torch.from_numpy(np.stack(coded)).permute(0, 3, 1, 2)


CORRUPTIONS: Mapping[str, Callable[[Images, int], Images]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixels": _pixels,
    "JPEG": _jpeg,
}
"""The corruptions of an image, at severities 0, 1 and 2."""
SEVERITIES = 3


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Judge the runs on disturbed test images, and write table, chart and sheet.

    Raises:
        UserError: If a run is not finished or knows other classes, or there are too few images.
    """
    runs = _runs(config, options)
    images, labels = _test_images(config, options)
    rows = [_row(one, images, labels) for one in counted("judging runs", runs)]
    data = Path(config.data.source).name
    text = "\n".join(
        [
            f"# Robustness on {len(labels)} test images of {data}\n",
            markdown_table(rows),
            "FGSM changes each pixel by so many grey levels of 255, against the run's own "
            "gradient. A corruption is the mean of three severities; intervals of the same images "
            "are not independent between runs.\n",
        ]
    )
    write_answer(folder, "robustness", text, rows)
    bars = {
        f"{row['run']}: {name}": value
        for row in rows
        for name, value in row.items()
        if isinstance(value, Interval) and name in ("clean", "FGSM 4", MEAN)
    }
    chart = Chart("Test images that are recognised", "", "share of images, %")
    draw_bars(folder / "robustness.png", chart, bars)
    _draw(folder / "robustness_sheet.png", images)
    return text


MEAN = "corrupted, mean"


def _runs(config: Config, options: Namespace) -> list[FinishedRun]:
    if not options.runs:
        raise UserError("--runs must name at least one finished run to study robustness, got none")
    runs, names = finished_runs(options.runs), list(load_splits(config.data).test.class_names)
    for one in runs:
        if list(one.class_names) != names:
            raise UserError(f"--runs must know the classes of data.source, {one.folder} does not")
        if one.config.data.image_size != config.data.image_size:
            raise UserError(
                f"--runs must see images of data.image_size {config.data.image_size}, "
                f"{one.folder} sees {one.config.data.image_size}"
            )
    return runs


def _test_images(config: Config, options: Namespace) -> tuple[Images, Int[Tensor, " b"]]:
    test = load_splits(config.data).test
    if options.images < 2:
        raise UserError(f"--images must be at least 2, got {options.images}")
    order = numpy_rng("study robustness", options.seed).permutation(len(test))
    chosen = np.sort(order[: options.images])
    skips = config.data.on_bad_image == "skip"
    batches = list(
        ordered_batches(
            Subset(test, chosen), eval_transform(config.data), 256, skips_bad_images=skips
        )
    )
    places = torch.cat([found for _, found in batches])
    labels = torch.from_numpy(np.asarray(test.labels)[chosen]).long()
    return torch.cat([batch for batch, _ in batches]), labels[places]


def _row(one: FinishedRun, images: Images, labels: Int[Tensor, " b"]) -> Row:
    classifier, total = one.classifier(), len(labels)
    found = {"clean": _hits(classifier, images.float(), labels)}
    for epsilon in EPSILONS:
        attacked = fgsm(classifier, images, labels, epsilon)
        found[f"FGSM {epsilon}"] = _hits(classifier, attacked, labels)
    shares = {name: share(hits, total) for name, hits in found.items()}
    for name, disturb in CORRUPTIONS.items():
        hits = sum(
            _hits(classifier, disturb(images, severity).float(), labels)
            for severity in range(SEVERITIES)
        )
        shares[name] = _mean_share(hits, total * SEVERITIES, total)
    middle = float(np.mean([shares[name].value for name in CORRUPTIONS]))
    shares[MEAN] = _mean_share(round(middle * total), total, total)
    return {"run": one.name, **shares}


def _mean_share(hits: int, tries: int, images: int) -> Interval:
    """Return a share over several views of each image, with the interval of as many images."""
    found = share(round(hits / tries * images), images)
    return found._replace(value=hits / tries)


def fgsm(
    classifier: nn.Module, images: Images, labels: Int[Tensor, " b"], epsilon: float
) -> Float[Tensor, "b 3 s s"]:
    """Move every pixel by `epsilon` grey levels of 255 in the direction that raises the loss."""
    moved = []
    for some, truth in zip(images.split(64), labels.split(64), strict=True):
        pixels = some.float().requires_grad_()
        loss = F.cross_entropy(_logits(classifier, pixels), truth, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
        moved.append((some + epsilon * gradient.sign()).clamp(0, 255))
    return torch.cat(moved)


@torch.no_grad()
def _hits(
    classifier: nn.Module, images: Float[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]
) -> int:
    parts = zip(images.split(256), labels.split(256), strict=True)
    return sum(int((_logits(classifier, some).argmax(1) == own).sum()) for some, own in parts)


def _logits(classifier: nn.Module, pixels: Float[Tensor, "b 3 s s"]) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in input_statistics(classifier))
    logits: Tensor = classifier((pixels / 255 - mean) / std)
    return logits


def _bytes(images: Float[Tensor, "b 3 s s"]) -> Images:
    return images.round().clamp(0, 255).to(torch.uint8)


def _draw(path: Path, images: Images) -> None:
    rows = []
    for image in images[:: max(1, len(images) // SHOWN)][:SHOWN]:
        shown = {"clean": image} | {
            f"{name}, {severity + 1}": disturb(image[None], severity)[0]
            for name, disturb in CORRUPTIONS.items()
            for severity in (0, SEVERITIES - 1)
        }
        rows.append(
            {name: Cell(one.permute(1, 2, 0).contiguous().numpy()) for name, one in shown.items()}
        )
    draw_sheet(rows, path, title="Corruptions, weakest and strongest")


def _add_options(parser: ArgumentParser) -> None:
    add_runs_option(parser, "trained with the recipe and, say, without synthetic images")
    add_draw_options(parser, IMAGES, "test images")


STUDY = Study(
    about=(
        "Whether augmentation makes a classifier harder to disturb (DiffuseMix's claim). Finished "
        "runs are judged on the same test images as they are, with adversarial noise (FGSM) and "
        "with six common corruptions of our own at three severities. Needs finished runs of the "
        "recipe's data and image size, such as those of online-aug compare. Writes robustness.md, "
        "robustness.csv, robustness.png and robustness_sheet.png. One run "
        "on 200 digits took 12 s of one core."
    ),
    examples="pocket_birds_sgd_mix --runs runs/vanilla-seed0,runs/sgd_mix-seed0 --images 1000",
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
