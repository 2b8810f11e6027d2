"""How wrong may the maps be before SGD-Mix's mix no longer shows its class?

Maps are shifted, blurred, replaced by noise and inverted, cut into masks as the recipe does, and
the source is pasted by them onto the background that they choose. True masks, or those of the
recipe's own maps, say how much of the object is still there.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float

from online_aug.config import Config
from online_aug.console import counted
from online_aug.data.image_sets import folder_of
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import cut_out
from online_aug.experiment.mask_files import MaskFiles
from online_aug.methods import Picture
from online_aug.methods.foreground_mix import ForegroundMix
from online_aug.saliency import SaliencyTable
from online_aug.saliency.masks import decode_mask
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame import images as frame
from online_aug.studies.frame.answers import (
    Chart,
    Row,
    draw_bars,
    interval_of,
    markdown_table,
    mean,
    share,
    write_answer,
)
from online_aug.studies.frame.judge import Judge, add_judge_options, check_judge, open_judge
from online_aug.studies.frame.sheet import BAD, Cell, draw_sheet
from online_aug.studies.frame.trainings import (
    add_training_options,
    optional_trainings,
    with_accuracy,
)
from online_aug.studies.masks import true_masks

IMAGES, SHOWN = 100, 10
_SIDE = 128
"""Side of the masks and of the mixes, px."""
_NOISE_BLUR = 0.1
"""Width of the blur that turns white noise into blobs, as a share of the map's side."""
Map = Float[np.ndarray, "u v"]
Masks = Mapping[str, Bool[np.ndarray, "s s"]]


def shifted(values: Map, rng: np.random.Generator, by: float) -> Map:
    """Move a map by a share of its side in a random direction; its least value fills the rest."""
    angle = rng.uniform(0, 2 * np.pi)
    height, width = values.shape
    move = np.array([[1, 0, by * width * np.cos(angle)], [0, 1, by * height * np.sin(angle)]])
    least = float(values.min())
    moved = cv2.warpAffine(
        values.astype(np.float32), move, (width, height), borderValue=(least,) * 4
    )
    return np.asarray(moved)


def blurred(values: Map, rng: np.random.Generator, by: float) -> Map:
    """Blur a map by a Gaussian whose deviation is a share of its side."""
    return np.asarray(cv2.GaussianBlur(values.astype(np.float32), (0, 0), by * max(values.shape)))


def random(values: Map, rng: np.random.Generator, by: float) -> Map:
    """Replace a map by blobs that have nothing to do with the image."""
    noise = blurred(rng.normal(size=values.shape).astype(np.float32), rng, _NOISE_BLUR)
    return np.asarray((noise - noise.min()) / (noise.max() - noise.min()))


def inverted(values: Map, rng: np.random.Generator, by: float) -> Map:
    """Call the background of a map its foreground."""
    return 1 - values


FAULTS: dict[str, tuple[Callable[[Map, np.random.Generator, float], Map] | None, float]] = {
    "as they are": (None, 0),
    "shifted by 5 %": (shifted, 0.05),
    "shifted by 10 %": (shifted, 0.1),
    "shifted by 20 %": (shifted, 0.2),
    "blurred by 5 %": (blurred, 0.05),
    "blurred by 15 %": (blurred, 0.15),
    "random blobs": (random, 0),
    "inverted": (inverted, 0),
}
"""Each fault of a map, and its size as a share of the side."""
TRAINED = ("as they are", "shifted by 10 %", "random blobs", "inverted")
"""Those by which is trained with `--train`."""


@dataclass(frozen=True, kw_only=True)
class Mixes:
    """The mixes that maps of one kind make."""

    name: str
    masks: Sequence[Bool[np.ndarray, "s s"]]
    iou: Sequence[float]
    held: Sequence[float]
    """Share of the source's object that is in the mix."""
    foreign: Sequence[float]
    """Share of the background's object that is in the mix."""
    refused: int
    images: Sequence[Picture]
    seen: Sequence[int] = ()


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Mix by maps with faults, and write table, chart and sheet.

    Raises:
        UserError: If the recipe's method cuts out no foregrounds, or the options do not fit.
        RunError: If the judge could not be trained.
    """
    experiment, method = frame.open_foregrounds(config, needs="noise in its maps")
    frame.check_images(experiment, options.images, least=3)
    check_judge(config, options.judge)
    runs = optional_trainings(config, options, folder, _rows_trained(folder))
    files = _mask_files(experiment, folder) if runs else {}
    frame.make_ready(experiment, generates=False)
    table = frame.foregrounds_of(experiment)
    order = numpy_rng("study noise", options.seed).permutation(len(table))[: options.images]
    digests = [table.digests[place] for place in sorted(order)]
    truth, against = true_masks(experiment, options.truth, digests, _SIDE)
    if truth is None:
        truth = dict(zip(digests, table.masks(digests, _SIDE), strict=True))
        against = "masks of the recipe's own maps"
    pictures = {digest: frame.picture_of(experiment, digest, _SIDE) for digest in digests}
    kinds = {name: _table(experiment, table, pictures, name, options.seed) for name in FAULTS}
    found = [_mixed(name, kinds[name], method, truth, pictures, options) for name in kinds]
    judge = open_judge(config, options.judge, folder)
    found = [replace(one, seen=judge.classes(one.images).tolist()) for one in found]
    labels = {source.digest: source.label for source in experiment.data.sources}
    rows = [_row(one, [labels[digest] for digest in digests]) for one in found]
    for name, paths in files.items():
        _write_masks(experiment, table, name, paths, options.seed)
    text = with_accuracy(_text(experiment, options, against, rows, judge), runs)
    write_answer(folder, "noisy_saliency", text, rows)
    bars = {str(row["maps"]): interval_of(row, KEPT) for row in rows}
    chart = Chart("Mixes that show the source's class", "", "share of mixes, %")
    draw_bars(folder / "noisy_saliency.png", chart, bars)
    names = experiment.splits.train.class_names
    said = {digest: names[labels[digest]] for digest in digests}
    _draw(folder / "noisy_saliency_sheet.png", digests, pictures, said, found, names)
    return text


KEPT = "shows the source's class"


def _table(
    experiment: Experiment,
    table: SaliencyTable,
    pictures: Mapping[str, Picture],
    name: str,
    seed: int,
) -> SaliencyTable:
    """Return the foregrounds of the images by their maps with a fault, cut as the recipe does."""
    fault, by = FAULTS[name]
    maps = {}
    for digest in pictures:
        values = table.maps[table.place(digest)]
        rng = numpy_rng("study noise", seed, digest)
        maps[digest] = values if fault is None else fault(values, rng, by).astype(np.float32)
    if experiment.config.saliency.chosen_mask != "grabcut":
        return SaliencyTable.from_maps(name, maps)
    side = experiment.saliency.cut_size
    cut = {
        digest: decode_mask(cut_out(frame.picture_of(experiment, digest, side), maps[digest]))
        for digest in counted(f"cutting out, maps {name}", list(pictures))
    }
    return SaliencyTable.from_maps(name, maps, cut)


def _mixed(
    name: str,
    table: SaliencyTable,
    method: ForegroundMix,
    truth: Masks,
    pictures: Mapping[str, Picture],
    options: Namespace,
) -> Mixes:
    most = len(table) - 1
    fewest, upper = (min(count, most) for count in method.settings.candidates)
    settings = method.settings.model_copy(update={"candidates": (fewest, upper)})
    drawing = type(method)(settings)
    masks, images, iou, held, foreign, refused = [], [], [], [], [], 0
    for digest in pictures:
        rng = numpy_rng("study noise mix", options.seed, digest)
        place = table.place(digest)
        background = drawing.draw_background(table, place, rng)
        other = table.digests[background]
        refused += drawing.fault(table, place, background) is not None
        own, theirs = table.masks([digest, other], _SIDE)
        union, real = own | theirs, truth[digest]
        masks.append(own)
        iou.append(float((own & real).sum() / max(1, (own | real).sum())))
        held.append(float((union & real).sum() / max(1, real.sum())))
        foreign.append(float((~union & truth[other]).sum() / max(1, truth[other].sum())))
        images.append(np.where(union[..., None], pictures[digest], pictures[other]))
    return Mixes(
        name=name, masks=masks, iou=iou, held=held, foreign=foreign, refused=refused, images=images
    )


def _rows_trained(folder: Path) -> dict[str, tuple[str, ...]]:
    keys = ("saliency.method=masks", "saliency.layout=stretched", "saliency.mask=otsu")
    return {name: (f"saliency.masks={_folder_of(folder, name)}", *keys) for name in TRAINED}


def _folder_of(folder: Path, name: str) -> Path:
    return folder / "masks" / name.replace(" ", "_").replace("%", "percent")


def _mask_files(experiment: Experiment, folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the file of each training image's mask with each fault; write nothing but folders.

    Raises:
        UserError: If the images are not files, so that masks cannot be told by their names.
    """
    found = {}
    for name in TRAINED:
        place = _folder_of(folder, name)
        keys = {"masks": place, "layout": "stretched", "method": "masks"}
        saliency = experiment.config.saliency.model_copy(update=keys)
        config = experiment.config.model_copy(update={"saliency": saliency})
        if folder_of(experiment.splits.train) is None:
            raise UserError(
                "data.source must be a set of files to train with faulty masks, got "
                f"{experiment.config.data.source}"
            )
        place.mkdir(parents=True, exist_ok=True)
        found[name] = MaskFiles(config, experiment.splits.train).paths
    return found


def _write_masks(
    experiment: Experiment, table: SaliencyTable, name: str, paths: Sequence[Path], seed: int
) -> None:
    side, places = experiment.saliency.cut_size, experiment.data.places
    pictures = {digest: frame.picture_of(experiment, digest, side) for digest in places}
    faulty = _table(experiment, table, pictures, name, seed)
    for source, path in zip(experiment.data.sources, paths, strict=True):
        (mask,) = faulty.masks([source.digest], side)
        levels = mask.astype(np.uint8) * 255
        if levels.min() == levels.max():  # a blank mask would be refused: it has to be too small
            levels[:] = 0
            levels[0, 0] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), levels)


def _row(found: Mixes, labels: Sequence[int]) -> Row:
    hits = sum(seen == label for seen, label in zip(found.seen, labels, strict=True))
    return {
        "maps": found.name,
        "IoU of masks": mean(found.iou),
        "object in the mix": mean(found.held),
        "other object in the mix": mean(found.foreign),
        "refused": share(found.refused, len(labels)),
        KEPT: share(hits, len(labels)),
    }


def _text(
    experiment: Experiment, options: Namespace, against: str, rows: Sequence[Row], judge: Judge
) -> str:
    data, saliency = Path(experiment.config.data.source).name, experiment.config.saliency
    return "\n".join(
        [
            f"# Faulty maps of {data}: {options.images} mixes before any refinement\n",
            f"Maps by `saliency.method: {saliency.chosen_method}`, cut by "
            f"`saliency.mask: {saliency.chosen_mask}`, compared with {against}. Shifts and blurs "
            "are shares of the image's side. Mixes that the method would refuse are within the "
            "means.",
            judge.about,
            "",
            markdown_table(rows),
        ]
    )


def _draw(
    path: Path,
    digests: Sequence[str],
    pictures: Mapping[str, Picture],
    labels: Mapping[str, str],
    found: Sequence[Mixes],
    names: Sequence[str],
) -> None:
    rows = []
    for place, digest in enumerate(digests[:SHOWN]):
        row = {"source": Cell(pictures[digest], labels[digest])}
        for one in found:
            seen = names[one.seen[place]]
            cell = Cell(one.images[place], seen)
            row[one.name] = cell if seen == labels[digest] else cell._replace(colour=BAD)
        rows.append(row)
    draw_sheet(rows, path, title="Mixes by maps with faults, and what the judge sees")


def _add_options(parser: ArgumentParser) -> None:
    frame.add_draw_options(parser, IMAGES, "mixes")
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="DIR",
        help="folder of true masks, laid out as saliency.layout says; pocket_birds has its own",
    )
    add_judge_options(parser)
    add_training_options(parser, is_optional=True)


STUDY = Study(
    about=(
        "How wrong saliency maps may be before SGD-Mix breaks. The recipe's maps are shifted, "
        "blurred, replaced by random blobs and inverted, cut into masks as the recipe does, and "
        "images are mixed by them, without refinement: the masks' IoU with true masks, how much of "
        "either object is in the mix, and which class a judge sees. Needs a recipe of sgd_mix or "
        "paste. Writes noisy_saliency.md, noisy_saliency.csv, noisy_saliency.png and "
        "noisy_saliency_sheet.png. 40 mixes of pocket birds took 53 s of one core, maps and judge "
        "being there."
    ),
    examples=(
        "pocket_birds_sgd_mix\n"
        "pocket_birds_sgd_mix saliency.method=masks --images 300\n"
        "my_recipe.yaml --truth /data/segmentations saliency.layout=cub"
    ),
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
