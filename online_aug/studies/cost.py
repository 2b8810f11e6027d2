"""Measure what an image of a recipe costs here, stage by stage, and so a whole run.

A few images go through every stage: saliency map, mask, mix, encoding, denoising, decoding, writing
to disk. The rest is multiplication, and said to be.
"""

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cache import Store
from cache.record import Entry
from cache.text import byte_size
from online_aug.classifier.model import build_classifier, prepare_training
from online_aug.config import Config
from online_aug.config.loading import changed
from online_aug.console import counted, duration
from online_aug.cores import usable_cores
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import cut_out, made_maps
from online_aug.experiment.saliency import viewer_of
from online_aug.finetuning.run import ensure_finetuned
from online_aug.loader.pool import codec_for
from online_aug.loader.slots import order_of
from online_aug.producer.work import load_local_generator, work_of
from online_aug.reporting.refusals import MOST_ASKED
from online_aug.saliency.maps import encode_map
from online_aug.studies import Study
from online_aug.studies.frame import images as frame
from online_aug.studies.frame.answers import (
    Chart,
    Row,
    draw_bars,
    exact,
    markdown_table,
    write_answer,
)

IMAGES = 24
_STEPS = 3
"""Steps of training that are timed, after one that is not."""
_FEW_STEPS, _MORE_STEPS = 2, 6
"""Lengths of two short fine-tunings, whose difference has no loading in it."""
_DENOISE, _WRITE = "denoising", "writing"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A kind of work, timed on a few items."""

    name: str
    unit: str
    """The item, such as `image`."""
    seconds: float
    """Time of one item, s."""
    items: int
    """How many of them a whole run has."""
    disk: float = 0.0
    """Bytes that one item takes of the disk."""

    @property
    def total_s(self) -> float:
        """Time of all items, s."""
        return self.seconds * self.items


def run(config: Config, options: Namespace, folder: Path) -> str:
    """Time the stages, multiply them, and write table and chart.

    Raises:
        UserError: If the recipe makes no images ahead of training, or there are too few.
    """
    experiment = frame.open_experiment(config, needs="its cost")
    frame.check_images(experiment, options.images)
    stages = [
        *_saliency(experiment, options.images),
        *_finetuning(experiment),
        *_generation(experiment, options.images),
        *_training(experiment),
    ]
    rows = [_row(stage) for stage in stages]
    text = _text(experiment, options.images, stages, rows)
    write_answer(folder, "cost", text, rows)
    bars = {stage.name: exact(stage.total_s / 60, is_share=False) for stage in stages}
    chart = Chart("Time of a whole run by stage, extrapolated", "", "minutes", is_share=False)
    draw_bars(folder / "cost.png", chart, bars)
    return text


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _saliency(experiment: Experiment, count: int) -> list[Stage]:
    saliency = experiment.saliency
    if not saliency.is_needed:
        return []
    images = len(experiment.data.digests)
    places = sorted(experiment.data.places.values())[:count]
    if not saliency.is_known:
        raise UserError(
            "saliency.method must be one that is known before fine-tuning to study its cost, or "
            "run online-aug finetune first"
        )
    viewer = None if saliency.method == "masks" else viewer_of(experiment)
    maps: dict[int, np.ndarray] = {}

    def look() -> None:
        for found in made_maps(experiment, viewer, places, is_shown=False):
            maps.update(found)

    if viewer is not None:  # the first call of a network is slower
        list(made_maps(experiment, viewer, places[:1], is_shown=False))
    per_map = _timed(look) / len(places)
    size = float(np.mean([len(encode_map(values)) for values in maps.values()]))
    stages = [Stage(name="saliency map", unit="image", seconds=per_map, items=images, disk=size)]
    if experiment.config.saliency.chosen_mask == "grabcut":
        digests = {place: experiment.data.sources[place].digest for place in maps}
        side = saliency.cut_size
        squares = {p: frame.picture_of(experiment, d, side) for p, d in digests.items()}
        sizes: list[int] = []

        def cut() -> None:
            with ThreadPoolExecutor(usable_cores()) as pool:
                masks = pool.map(cut_out, [squares[place] for place in maps], maps.values())
                sizes.extend(map(len, masks))

        seconds = _timed(cut) / len(maps)
        disk = float(np.mean(sizes))
        stages.append(
            Stage(name="GrabCut's mask", unit="image", seconds=seconds, items=images, disk=disk)
        )
    return stages


def _finetuning(experiment: Experiment) -> list[Stage]:
    if experiment.diffusion.finetuned is None or experiment.diffusion.adaptation.imported:
        return []
    times = []
    for steps in (_FEW_STEPS, _MORE_STEPS):
        with tempfile.TemporaryDirectory(prefix="online_aug_cost_") as place:
            few = changed(experiment.config, "finetune", path=place, steps=steps)
            short = Experiment(few, experiment.splits, experiment.device)
            times.append(_timed(lambda short=short: ensure_finetuned(short)))  # type: ignore[misc]
    per_step = max(0.0, times[1] - times[0]) / (_MORE_STEPS - _FEW_STEPS)
    steps = experiment.diffusion.adaptation.steps
    done = 0 if experiment.diffusion.is_ready else steps
    name = "fine-tuning" if done else "fine-tuning (done already)"
    return [Stage(name=name, unit="step", seconds=per_step, items=done)]


def _generation(experiment: Experiment, count: int) -> list[Stage]:
    """Time the stages of making images, on the first of the plan, all slots taken."""
    ready = experiment
    if not experiment.diffusion.is_ready:  # the result makes images as fast
        plain = changed(experiment.config, "finetune", enabled=False)
        ready = Experiment(plain, experiment.splits, experiment.device)
    frame.make_ready(ready)
    part_work, plan = work_of(ready), len(ready.plan)
    accepted = (request for request in ready.plan if part_work.refusal(request) is None)
    requests = list(islice(accepted, count))
    if len(requests) < 2:
        raise UserError("the plan must hold images that the method accepts, got none to time")
    some = ready.plan[:: max(1, plan // MOST_ASKED)]
    steps = [max(1, int(r.num_inference_steps * r.strength)) for r in some]
    with closing(load_local_generator(ready)) as generator:
        maker = frame.ImageMaker(part_work, generator)
        maker.make(requests[:2], "warming up")
        generator.times.reset()
        made = maker.make(requests, "timing images")
        seconds = dict(generator.times.seconds)
    here = float(np.mean([max(1, int(r.num_inference_steps * r.strength)) for r in requests]))
    names = {"prepare": "reading and mixing", "encode": "encoding", "decode": "decoding"}
    stages = [
        Stage(name=names[kind], unit="image", seconds=seconds[kind] / len(made), items=plan)
        for kind in names
    ]
    per_image = seconds["denoise"] / len(made) * float(np.mean(steps)) / here
    stages.insert(2, Stage(name=_DENOISE, unit="image", seconds=per_image, items=plan))
    return [*stages, _writing(ready, made, plan)]


def _writing(experiment: Experiment, made: Sequence[frame.Made], plan: int) -> Stage:
    entries = [Entry(one.request.to_fields(), one.image) for one in made]
    codec = codec_for(experiment.config.cache.codec, experiment.splits.train)
    with (
        tempfile.TemporaryDirectory(prefix="online_aug_cost_") as place,
        Store(Path(place) / "cache", codec=codec) as store,
    ):
        seconds = _timed(lambda: store.put_many(entries)) / len(entries)
        disk = store.stats()["stored_bytes"] / len(entries)
    return Stage(name=_WRITE, unit="image", seconds=seconds, items=plan, disk=disk)


def _training(experiment: Experiment) -> list[Stage]:
    """Time forward and backward passes of the classifier on noise."""
    config, names = experiment.config, experiment.splits.train.class_names
    order, side = order_of(config, experiment.splits.train), config.data.image_size
    device = "cpu" if experiment.device == "cpu" else experiment.device
    bare = config.classifier.model_copy(update={"pretrained": False, "checkpoint": None})
    classifier = build_classifier(bare, len(names), image_size=side).to(device)
    prepare_training(classifier, config.classifier)
    size = max(2, order.batch_size)
    images = torch.rand(size, 3, side, side, device=device)
    labels = torch.zeros(size, dtype=torch.long, device=device)

    def step() -> None:
        F.cross_entropy(classifier(images), labels).backward()
        if device != "cpu":
            torch.cuda.synchronize(device)

    step()
    times = [_timed(step) for _ in counted("timing the classifier", range(_STEPS))]
    steps = config.run.epochs * order.steps
    seconds = float(np.median(times))
    return [Stage(name="training the classifier", unit="step", seconds=seconds, items=steps)]


def _row(stage: Stage) -> Row:
    return {
        "stage": stage.name,
        "measured, ms": 1000 * stage.seconds,
        "of one": stage.unit,
        "a run has": stage.items,
        "in all": duration(stage.total_s),
        "in all, s": round(stage.total_s, 1),
        "disk of one, bytes": round(stage.disk),
        "disk in all": byte_size(round(stage.disk * stage.items)),
    }


def _text(experiment: Experiment, count: int, stages: Sequence[Stage], rows: Sequence[Row]) -> str:
    before = sum(s.total_s for s in stages if s.name not in ("training the classifier",))
    training = stages[-1].total_s
    makes = {"encoding", "reading and mixing", _DENOISE, "decoding", _WRITE}
    making = [s for s in stages if s.name in makes]
    one = sum(stage.seconds for stage in making)
    data = Path(experiment.config.data.source).name
    disk = sum(stage.disk * stage.items for stage in stages)
    return "\n".join(
        [
            f"# Cost of a run on {data}, measured on {count} images on {experiment.device}\n",
            markdown_table(rows),
            f"An image of the plan takes {1000 * one:.0f} ms of work, {_share(making, one)}. "
            "Preparing and decoding run beside denoising, in threads of their own.\n",
            f"**Extrapolated**, nothing of it run: {duration(before)} of work to make everything, "
            f"{duration(training)} of training steps (forward and backward passes alone, without "
            f"reading images), {byte_size(round(disk))} of cache. On separate devices both go on "
            "at once; on one device the times add up. What is in the cache already is not made "
            "again, and with mixing.starvation substitute a run does not wait for the rest.\n",
        ]
    )


def _share(making: Sequence[Stage], one: float) -> str:
    denoising = next(stage.seconds for stage in making if stage.name == _DENOISE)
    return f"{denoising / one:.0%} of it denoising"


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help=f"images; default {IMAGES}"
    )


STUDY = Study(
    about=(
        "What an image of a recipe costs on this machine, stage by stage (saliency map, mask, "
        "mix, encoding, denoising, decoding, writing), in time and disk, and what a whole run of "
        "the recipe would: measured on a few images, the rest multiplied, and said so. Times "
        "differ from call to call. Makes the saliency maps that the plan needs, which stay in the "
        "cache. Writes cost.md, cost.csv and cost.png. 12 images of "
        "pocket birds took 13 s of one core, the maps being there."
    ),
    examples="pocket_birds_sgd_mix\nquickstart --images 50\ncub_sgd_mix devices.generate=cuda:0",
    add_options=_add_options,
    run=run,
)
"""The study as the table of studies finds it."""
