"""Do the foregrounds hold the objects? SGD-Mix and `paste` rest on it.

Some training images are cut out by Otsu's threshold and by GrabCut, and mixed as the method would.
True masks say how much of each object is covered; without them, a second way of making maps says
how far two ways agree.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from cache import Store, cache_exists
from online_aug.config import Config
from online_aug.console import counted
from online_aug.data.image_sets import file_names_of
from online_aug.data.images import BadImageError
from online_aug.data.transforms import fit_square
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import cut_out, made_maps
from online_aug.experiment.images import SourceImages
from online_aug.experiment.mask_files import MaskFiles
from online_aug.files import write_atomically
from online_aug.methods.foreground_mix import ForegroundMix
from online_aug.saliency import SaliencyTable
from online_aug.saliency.maps import read_maps
from online_aug.saliency.masks import decode_mask, resized_masks
from online_aug.seeding import numpy_rng
from online_aug.studies import Study
from online_aug.studies.frame.images import open_foregrounds
from online_aug.studies.frame.mask_sheet import SheetRow, draw_mask_sheet
from online_aug.studies.mask_report import COVERED, REASONS, Cut, Mask, Report

SAMPLES = 64


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Judge the masks of some training images and write sheet, CSV and Markdown table.

    Raises:
        UserError: If the configuration has no foregrounds, or they or the true masks cannot be had.
    """
    experiment, method = _experiment(config, options)
    digests = _drawn(experiment, options)
    maps = _maps(experiment, digests)
    images = _images(experiment, digests)
    judge, against = _reference(experiment, options, digests)
    tables = _tables(images, maps)
    cuts = {
        kind: [_cut(table, method, judge, digest, options.seed) for digest in digests]
        for kind, table in tables.items()
    }
    report = Report(config, against, is_truth=_truth(config, options.truth) is not None, cuts=cuts)
    total = len(experiment.data.digests)
    answer = report.text(total)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "masks.md", answer)
    names = _names(experiment)
    write_atomically(folder / "masks.csv", report.csv(names))
    rows = _rows(report, images, maps, judge, names)
    draw_mask_sheet(
        rows,
        folder / "masks.png",
        title=report.title(total),
        reference="true mask" if report.is_truth else "other way",
    )
    return answer


def _experiment(config: Config, options: Namespace) -> tuple[Experiment, ForegroundMix]:
    experiment, method = open_foregrounds(config, needs="its masks")
    if not experiment.saliency.is_known:
        experiment.contexts  # noqa: B018 - raises: the generator has to be fine-tuned first
    most = len(experiment.data.digests)
    if not 2 <= options.samples <= most:
        raise UserError(
            f"--samples must be at least 2 and at most {most}, the different training images, "
            f"got {options.samples}"
        )
    return experiment, method


def _drawn(experiment: Experiment, options: Namespace) -> list[str]:
    """Draw the images that are looked at, in the order of the data set."""
    places = experiment.data.places
    rng = numpy_rng("study masks", options.seed)
    drawn = rng.choice(experiment.data.digests, options.samples, replace=False)
    return sorted(map(str, drawn), key=lambda digest: places[digest])


def _maps(experiment: Experiment, digests: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the maps that the cache has, and make the others."""
    version, cache = experiment.saliency.map_version, experiment.config.cache.path
    maps: dict[str, np.ndarray] = {}
    if version is not None and cache_exists(cache):
        with Store(cache, readonly=True) as store:
            maps = read_maps(store.get_saliency, version, digests)
    places = {experiment.data.places[digest]: digest for digest in digests if digest not in maps}
    for found in made_maps(experiment, None, list(places), is_shown=True) if places else ():
        maps |= {places[place]: values for place, values in found.items()}
    if missing := len(set(digests) - set(maps)):
        raise UserError(
            "data.source must hold images that can be read to study masks, got "
            f"{missing} of {len(digests)} without a map; give another --seed"
        )
    return maps


def _images(
    experiment: Experiment, digests: Sequence[str]
) -> dict[str, UInt8[np.ndarray, "s s 3"]]:
    sources = SourceImages(experiment.splits.train, experiment.data.sources)
    side = experiment.saliency.cut_size
    try:
        squares = {digest: fit_square(sources.by_digest(digest), side) for digest in digests}
    except BadImageError as error:
        raise UserError(f"{error}; give another --seed") from None
    return {digest: square.permute(1, 2, 0).numpy() for digest, square in squares.items()}


def true_masks(
    experiment: Experiment, given: Path | None, digests: Sequence[str], side: int
) -> tuple[dict[str, Mask] | None, str]:
    """Return the true masks of some images and where they are from; None if there are none.

    Args:
        experiment: Has the images.
        given: Folder of true masks; None takes `saliency.masks` or those of pocket_birds.
        digests: The images.
        side: Side of the masks, px.

    Raises:
        UserError: If a mask is missing or cannot be used.
    """
    folder = _truth(experiment.config, given)
    if folder is None:
        return None, ""
    found = _masks_in(experiment, folder, digests)
    large = resized_masks(np.stack([found[digest] > 0.5 for digest in digests]), side)
    return dict(zip(digests, large, strict=True)), f"true masks of {folder}"


def _truth(config: Config, given: Path | None) -> Path | None:
    if given is not None:
        return given
    if config.saliency.masks is not None and config.saliency.chosen_method != "masks":
        return config.saliency.masks
    own = config.data.root / config.data.source / "masks"
    return own if config.data.source == "pocket_birds" and own.is_dir() else None


def _reference(
    experiment: Experiment, options: Namespace, digests: Sequence[str]
) -> tuple[dict[str, Mask], str]:
    """Return the masks that others are compared with, and their name."""
    side = experiment.saliency.cut_size
    truth, against = true_masks(experiment, options.truth, digests, side)
    if truth is not None:
        return truth, against
    other = "diffusion" if experiment.saliency.method == "spectral_residual" else None
    other = other or "spectral_residual"
    saliency = experiment.config.saliency.model_copy(update={"method": other, "teacher": None})
    changed = replace(
        experiment, config=experiment.config.model_copy(update={"saliency": saliency})
    )
    if not changed.saliency.is_known:
        raise UserError(
            "--truth must name a folder of true masks, got none, and nothing else can be compared "
            f"with {experiment.saliency.method} before online-aug finetune"
        )
    maps = _maps(changed, digests)
    masks = SaliencyTable.from_maps(other, maps).masks(digests, side)
    return dict(zip(digests, masks, strict=True)), f"maps of {other}, cut by Otsu"


def _masks_in(
    experiment: Experiment, folder: Path, digests: Sequence[str]
) -> dict[str, Float[np.ndarray, "u v"]]:
    saliency = experiment.config.saliency.model_copy(update={"masks": folder})
    data = experiment.config.data.model_copy(update={"on_bad_image": "error"})
    config = experiment.config.model_copy(update={"saliency": saliency, "data": data})
    files = MaskFiles(config, experiment.splits.train)
    places = {experiment.data.places[digest]: digest for digest in digests}
    found: dict[str, np.ndarray] = {}
    for batch in files.maps(list(places)):
        found |= {places[place]: values for place, values in batch.items()}
    return found


def _tables(
    images: Mapping[str, UInt8[np.ndarray, "s s 3"]], maps: Mapping[str, np.ndarray]
) -> dict[str, SaliencyTable]:
    """Return the foregrounds of the samples by kind of mask."""
    encoded = {d: cut_out(images[d], maps[d]) for d in counted("cutting out", list(images))}
    cut = {digest: decode_mask(content) for digest, content in encoded.items()}
    return {
        "otsu": SaliencyTable.from_maps("otsu", maps),
        "grabcut": SaliencyTable.from_maps("grabcut", maps, cut),
    }


def _cut(
    table: SaliencyTable, method: ForegroundMix, judge: Mapping[str, Mask], digest: str, seed: int
) -> Cut:
    place, truth = table.place(digest), judge[digest]
    settings = method.settings
    most = len(table) - 1
    rng = numpy_rng("study masks", seed, digest)
    fewer = (min(settings.candidates[0], most), min(settings.candidates[1], most))
    drawing = type(method)(settings.model_copy(update={"candidates": fewer}))
    background = drawing.draw_background(table, place, rng)
    masks = table.masks([digest, table.digests[background]], len(truth))
    fault = drawing.fault(table, place, background)
    both, either = (masks[0] & truth).sum(), (masks[0] | truth).sum()
    return Cut(
        digest=digest,
        mask=masks[0],
        background=table.digests[background],
        background_mask=masks[1],
        iou=float(both / max(1, either)),
        covered=float(both / max(1, truth.sum())),
        refused=None if fault is None else REASONS[fault],
    )


def _names(experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Return the file, or the index, and the class of each image by digest."""
    files = file_names_of(experiment.splits.train)
    classes, sources = experiment.splits.train.class_names, experiment.data.sources
    return {
        digest: (files[place] if files else str(place), classes[sources[place].label])
        for digest, place in experiment.data.places.items()
    }


def _rows(
    report: Report,
    images: Mapping[str, UInt8[np.ndarray, "s s 3"]],
    maps: Mapping[str, Float[np.ndarray, "u v"]],
    judge: Mapping[str, Mask],
    names: Mapping[str, tuple[str, str]],
) -> list[SheetRow]:
    """Return a row of the sheet for each image, the least covered first."""
    used = sorted(report.cuts[report.used], key=lambda cut: (cut.covered, cut.digest))
    by_kind = {kind: {cut.digest: cut for cut in cuts} for kind, cuts in report.cuts.items()}
    side = len(used[0].mask)
    tables = SaliencyTable.from_maps("shown", maps)
    return [
        SheetRow(
            image=images[cut.digest],
            values=tables.large_maps([cut.digest], side)[0].numpy(),
            masks={report.name(kind): cuts[cut.digest].mask for kind, cuts in by_kind.items()},
            notes={report.name(kind): _note(cuts[cut.digest]) for kind, cuts in by_kind.items()},
            reference=judge[cut.digest],
            background=images[cut.background],
            union=cut.mask | cut.background_mask,
            name=names[cut.digest][1],
            is_good=cut.covered >= COVERED,
            refused=cut.refused,
        )
        for cut in used
    ]


def _note(cut: Cut) -> str:
    return f"IoU {cut.iou:.2f}, covers {cut.covered:.0%}"


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help=f"how many training images to look at; default {SAMPLES}",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the images; the same seed, the same table"
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="DIR",
        help="folder of true masks, laid out as saliency.layout says; pocket_birds has its own",
    )


STUDY = Study(
    about=(
        "Whether the foregrounds of a recipe hold the objects, on which SGD-Mix and paste rest. "
        "Some training images are cut out by Otsu's threshold and by GrabCut and mixed as the "
        "method would. True masks (--truth, saliency.masks, or those of pocket_birds) say how "
        "much of each object is covered; without them two ways of making maps are compared. "
        "Writes masks.md, masks.csv and masks.png."
    ),
    examples=(
        "pocket_birds_sgd_mix saliency.method=spectral_residual\n"
        "pocket_birds_sgd_mix --samples 200 --seed 1 --out /tmp/masks\n"
        "my_recipe.yaml --truth /data/segmentations saliency.layout=cub"
    ),
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
