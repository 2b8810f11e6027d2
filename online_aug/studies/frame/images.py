"""Make the images of some requests now: drawn by the seed of a study, and kept in no cache.

The fine-tuned generator and the saliency maps are those of the recipe, made where they are due and
kept where a run keeps them, so that a run finds them.
"""

from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from online_aug.config import Config
from online_aug.console import progress
from online_aug.cores import compute_with
from online_aug.data.sources import load_splits
from online_aug.data.transforms import fit_square, to_bytes
from online_aug.diffusion.compatibility import settle
from online_aug.distributed.devices import plan_devices, sole_generator
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.experiment.images import SourceImages
from online_aug.experiment.judge import ensure_judge
from online_aug.experiment.saliency import check_saliency
from online_aug.finetuning.run import ensure_finetuned
from online_aug.generation.vae import VAE_BATCH_SIZE
from online_aug.methods import Part, Picture, make_method
from online_aug.methods.adaptive import StrengthSettings
from online_aug.methods.foreground_mix import ForegroundMix
from online_aug.methods.strengths import Denoising, check_strengths
from online_aug.producer.work import LoadedEngine, Work, load_generator, work_of
from online_aug.request import GenerationRequest
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng

Item = TypeVar("Item")
_TRIES = 8
"""How many variants of a source are looked through for one that names another class."""


def add_draw_options(parser: ArgumentParser, images: int, noun: str = "images") -> None:
    """Add the options that say how many images are drawn, and by which seed."""
    parser.add_argument(
        "--images", type=int, default=images, metavar="N", help=f"{noun}; default {images}"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the images; the same seed, the same table"
    )


def listed(kind: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """Return what reads an option of several values, separated by commas.

    An option that took several words would take the overrides behind it too.
    """

    def read(text: str) -> tuple[Item, ...]:
        return tuple(kind(word) for word in text.split(","))

    read.__name__ = f"list of {kind.__name__}"
    return read


def check_images(experiment: Experiment, wanted: int, least: int = 2) -> None:
    """Refuse a number of images that cannot be drawn.

    Raises:
        UserError: If it is too small, or there are fewer different training images.
    """
    most = len(experiment.data.digests)
    if not least <= wanted <= most:
        raise UserError(
            f"--images must be at least {least} and at most {most}, the different training "
            f"images, got {wanted}"
        )


def add_strengths_option(parser: ArgumentParser, default: str) -> None:
    """Add the option that names strengths; it is empty if none are given."""
    parser.add_argument(
        "--strengths",
        type=listed(float),
        default=(),
        metavar="S,S,...",
        help=f"strengths in (0, 1]; default {default}",
    )


def checked_strengths(given: Sequence[float], generation: Denoising) -> tuple[float, ...]:
    """Return the strengths of an option in ascending order.

    Raises:
        UserError: If one is out of range, or runs no step as images are made.
    """
    if not all(0 < strength <= 1 for strength in given):
        raise UserError(
            "--strengths must be above 0 and at most 1, got "
            f"{', '.join(f'{strength:g}' for strength in given)}"
        )
    try:
        check_strengths(given, generation)
    except ValueError as error:
        raise UserError(str(error).replace("method.strength", "--strengths")) from None
    return tuple(sorted(set(given)))


def open_experiment(config: Config, *, needs: str) -> Experiment:
    """Return an experiment that is checked, and nothing made yet.

    Args:
        config: The recipe with its overrides.
        needs: The study, for error messages.

    Raises:
        UserError: If the recipe makes no images, or only by the classifier in training.
    """
    if not config.is_planned:
        raise UserError(
            f"method must be one whose images a generator makes, to study {needs}, got "
            f"{', '.join(settings.name for settings in config.methods)} with "
            f"mixing.synthetic_probability {config.mixing.synthetic_probability:g}"
        )
    experiment = _opened(config, needs)
    experiment.check(generates=True)
    return experiment


def open_foregrounds(config: Config, *, needs: str) -> tuple[Experiment, ForegroundMix]:
    """Return an experiment whose method cuts out foregrounds, and the method.

    Raises:
        UserError: If it is another method, or foregrounds come from the classifier in training.
    """
    found = [m for m in map(make_method, config.methods) if isinstance(m, ForegroundMix)]
    if not found:
        raise UserError(
            "method.name must be one that cuts out foregrounds, such as sgd_mix, to study "
            f"{needs}, got {', '.join(settings.name for settings in config.methods)}"
        )
    return _opened(config, needs), found[0]


def _opened(config: Config, needs: str) -> Experiment:
    if config.plans_follow_classifier:
        raise UserError(
            "saliency.teacher must be null or a file of weights, or saliency.method one that needs "
            f"no training, to study {needs}, got the classifier in training"
        )
    if config.devices.generate == "none":
        raise UserError(f"devices.generate must be auto or a device to study {needs}, got none")
    devices = plan_devices(config.wished_devices, trains=False)
    compute_with(devices.generate_threads, devices.generator)
    experiment = Experiment(
        settle(_with_fixed_strengths(config)),
        load_splits(config.data, config.cache.path),
        devices.generator,
    )
    check_saliency(experiment)
    return experiment


def _with_fixed_strengths(config: Config) -> Config:
    # A study looks at all strengths that would be tried.
    methods = tuple(s.fixed if isinstance(s, StrengthSettings) else s for s in config.methods)
    one_or_more = methods if isinstance(config.method, tuple) else methods[0]
    return config.model_copy(update={"method": one_or_more})


def make_ready(experiment: Experiment, *, generates: bool = True) -> None:
    """Fine-tune the generator, train the gate's judge and make the maps, as far as they are due.

    Args:
        experiment: Checked.
        generates: Whether the generator is needed for more than for the maps.
    """
    if generates or not experiment.saliency.is_known:
        devices = plan_devices(experiment.config.wished_devices, trains=False)
        ensure_finetuned(experiment, devices.finetune)
        ensure_judge(experiment)
    ensure_saliency(experiment)


def foregrounds_of(experiment: Experiment) -> SaliencyTable:
    """Return the foregrounds of all training images of an experiment that is ready."""
    version = experiment.saliency.version
    assert version is not None  # else the experiment was refused
    return experiment.saliency.table(version, experiment.data.digests)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The requests that were drawn, and why others were not."""

    requests: Sequence[GenerationRequest]
    refused: Mapping[str, int]
    """How many sources were left out, by reason."""


def draw_requests(experiment: Experiment, part: Part, count: int, seed: int) -> Drawn:
    """Draw the requests of some training images, one for each, that the method accepts.

    A method that translates to other classes is asked for another class than the source's.

    Raises:
        UserError: If fewer images can be varied.
    """
    by_digest = {source.digest: source for source in experiment.data.sources}
    digests = sorted(by_digest)
    order = numpy_rng("study sources", seed).permutation(len(digests))
    work = work_of(experiment)
    requests: list[GenerationRequest] = []
    refused: dict[str, int] = {}
    for source in (by_digest[digests[place]] for place in order):
        if len(requests) == count:
            break
        rng = numpy_rng("study plan", seed, source.digest)
        planned = (part.method.plan(source, n, part.context, rng) for n in range(_TRIES))
        drawn = list(planned)
        request = next((r for r in drawn if r.target_label != r.source_label), drawn[0])
        request = replace(request, gate_version=part.context.gate_version)
        if reason := work.refusal(request):
            refused[reason] = refused.get(reason, 0) + 1
        else:
            requests.append(request)
    if len(requests) < count:
        said = ", ".join(f"{number} {reason}" for reason, number in refused.items())
        raise UserError(
            f"--images must be at most {len(requests)}, the different training images that "
            f"{part.method.name} can vary, got {count}{f' (refused: {said})' if said else ''}"
        )
    return Drawn(requests=requests, refused=refused)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A request with its image, and the gate's reason against it."""

    request: GenerationRequest
    image: Picture
    rejected: str | None


@dataclass(frozen=True)
class ImageMaker:
    """A loaded generator, and what prepares the images of an experiment for it."""

    work: Work
    generator: LoadedEngine

    def make(self, requests: Sequence[GenerationRequest], title: str) -> list[Made]:
        """Return the image of each request, in their order, and show the progress."""
        waiting, made = deque(requests), dict[GenerationRequest, Made]()
        with progress(title, len(requests)) as bar:
            while waiting or self.generator.in_flight:
                if waiting and self.generator.room >= VAE_BATCH_SIZE:
                    some = min(VAE_BATCH_SIZE, len(waiting))
                    batch = [waiting.popleft() for _ in range(some)]
                    self.generator.submit(batch, self.work.prepare)
                for request, image, verdict in self.generator.step():
                    pixels = to_bytes(image.float().cpu().nan_to_num()).permute(1, 2, 0).numpy()
                    picture = self.work.finish(request, np.ascontiguousarray(pixels))
                    made[request] = Made(request=request, image=picture, rejected=verdict.reason)
                    bar.advance()
        return [made[request] for request in requests]

    def starts(self, requests: Sequence[GenerationRequest]) -> list[Picture]:
        """Return the images that diffusion starts from, at the generator's resolution."""
        found = (self.work.prepare([request])[0, :3] for request in requests)
        return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in found]


@contextmanager
def image_maker(experiment: Experiment) -> Iterator[ImageMaker]:
    """Load the generator of an experiment that is ready; it is closed at the end."""
    with (
        sole_generator(experiment.device),
        closing(load_generator(experiment)) as generator,
    ):
        yield ImageMaker(work_of(experiment), generator)


def part_named(experiment: Experiment, name: str) -> Part:
    """Return a method of an experiment that is ready, with its context and saliency maps."""
    parts = experiment.parts_by(experiment.saliency.version)
    return next(part for part in parts if part.method.name == name)


def picture_of(experiment: Experiment, digest: str, side: int) -> Picture:
    """Return a training image as a square, its aspect lost.

    Raises:
        BadImageError: If it can no longer be read.
    """
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    square = fit_square(images.by_digest(digest), side)
    return np.ascontiguousarray(square.permute(1, 2, 0).numpy())
