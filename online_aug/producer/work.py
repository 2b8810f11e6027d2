"""The work of one generation process: the requests of an experiment and what makes their images."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from online_aug.data.images import BadImageError
from online_aug.diffusion.compatibility import MAX_SLOTS
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.gate import Finished, Gate, build_gate
from online_aug.generation.inputs import Prepare
from online_aug.generation.vae import VAE_BATCH_SIZE
from online_aug.labels import rare_class_weights
from online_aug.loader.back_pressure import max_ahead_of_each
from online_aug.methods import Picture
from online_aug.methods.base import PictureOf
from online_aug.planning import Requests
from online_aug.producer.request_order import Stripe, There, Weights
from online_aug.request import GenerationRequest, SourceFilter
from online_aug.settings import decided

ClassesOf: TypeAlias = Callable[[GenerationRequest], Mapping[str, str]]
"""Returns the names of data set and classes that the cache keeps with an image."""
UNREADABLE = "unreadable source"
"""Why a request is rejected whose image was lost meanwhile, if `data.on_bad_image` is skip."""


class ImageEngine(Protocol):
    """Takes requests in and gives finished images back, in any order; see `ImageGenerator`."""

    @property
    def room(self) -> int:
        """How many more requests keep it busy."""
        ...

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in, and the function that prepares their starting images."""
        ...

    def step(self) -> list[Finished]:
        """Go on a little and return what is finished by then."""
        ...

    def drop(self) -> None:
        """Forget what is not finished."""
        ...


class LoadedEngine(ImageEngine, Protocol):
    """An engine as `load_generator` returns it: to be measured, and to be closed."""

    slots: int
    """How many images it makes at a time."""
    fast_paths: str
    """How it makes them, in words."""

    @property
    def in_flight(self) -> int:
        """How many requests were taken in whose images have not come out."""
        ...

    def close(self) -> None:
        """End what it has started."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """The requests of one process in their order, and the preparation of their images."""

    plan: Requests
    """Requests that are known at the start."""
    plan_of: Callable[[str], Requests] | None
    """Makes the plan by a version of the saliency maps; None if there is only the first plan."""
    prepare: Prepare
    """Makes the starting images of requests of one plan, at the engine's resolution."""
    refusal: Callable[[GenerationRequest], str | None]
    """Says why a request cannot be prepared; None if it can."""
    max_ahead: int | None
    """Images not yet served at which to pause; None never pauses."""
    finish: Callable[[GenerationRequest, Picture], Picture] = lambda _, made: made
    """Returns the image to store, given the one that was made."""
    classes_of: ClassesOf = lambda request: {}
    stripe: Stripe | None = None
    """Part of the plan that this process begins with, and outside of which it makes nothing if its
    machine does not help others."""
    weights: Weights | None = None
    """Weights of classes or images at the start; None keeps the order of the plan."""
    there: There | None = None
    """Requests of the first plan that the cache is known to hold; None if none is."""
    follows_losses: bool = False
    """Whether the weights follow the classifier's losses."""


def work_of(
    experiment: Experiment, number: int = 0, count: int = 1, there: There | None = None
) -> Work:
    """Return the work of one process of an experiment.

    Args:
        experiment: Ready to be planned.
        number: Number of this process among those of this machine, from 0; it decides its part.
        count: How many processes this machine has.
        there: Requests of the plan that the cache is known to hold; None if none is.
    """
    config, schedule = experiment.config, experiment.config.schedule
    sources = _Preparation(experiment)

    return Work(
        plan=experiment.plan,
        there=there,
        plan_of=experiment.plan_of if experiment.saliency.follows_classifier else None,
        prepare=sources.prepare,
        refusal=sources.refusal,
        finish=sources.finish,
        max_ahead=max_ahead_of_each(config, count),
        classes_of=experiment.data.classes_of,
        stripe=Stripe.of(schedule).split(number, count),
        weights=_weights(experiment),
        follows_losses=schedule.priority == "hard",
    )


class _Preparation:
    """Source images of an experiment, made into starting images by the methods of the requests."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._resolution = decided(experiment.config.generation.resolution)
        self._sources = SourceImages(experiment.splits.train, experiment.data.sources)
        # Sources of requests that are accepted are kept until they are prepared.
        kept = _most_images_under_way(experiment.config.generation.slots)
        self._image_of = lru_cache(kept)(self._read)

    def prepare(self, requests: Sequence[GenerationRequest]) -> UInt8[Tensor, "b 4 r r"]:
        """Return starting images; the fourth channel is above 0 where an image has to stay."""
        images = torch.stack([self._source(request) for request in requests])
        kept = torch.zeros_like(images[:, :1])
        for name, method in self._experiment.methods.items():
            places = [place for place, request in enumerate(requests) if request.method == name]
            if places:
                some = [requests[place] for place in places]
                context = self._experiment.context_for(some[0])  # all are of one plan
                pictures = images[places].permute(0, 2, 3, 1).numpy()
                started = method.prepare(pictures, some, context, self._pictures(some[0]))
                images[places] = torch.from_numpy(started).permute(0, 3, 1, 2)
                stays = method.kept(some, context, self._resolution)
                kept[places, 0] = torch.from_numpy(stays).byte()
        return torch.cat([images, kept], dim=1)

    def finish(self, request: GenerationRequest, made: Picture) -> Picture:
        """Show the source's own pixels where they are to be kept, which the autoencoder blurs."""
        if request.keeps == "nothing":
            return made
        method = self._experiment.methods[request.method]
        context = self._experiment.context_for(request)
        stays = method.kept([request], context, self._resolution)[0]
        return np.where(stays[..., None], self._pictures(request)(request.source_digest), made)

    def _source(self, request: GenerationRequest) -> UInt8[Tensor, "3 r r"]:
        return self._image_of(request.source_digest, request.source_filter)

    def _pictures(self, request: GenerationRequest) -> PictureOf:
        return lambda digest: self._image_of(digest, request.source_filter).permute(1, 2, 0).numpy()

    def refusal(self, request: GenerationRequest) -> str | None:
        """Say why a request cannot be prepared; None if it can."""
        experiment = self._experiment
        if experiment.config.data.on_bad_image == "skip" and not self._is_readable(request):
            return UNREADABLE
        return experiment.methods[request.method].refusal(request, experiment.context_for(request))

    def _is_readable(self, request: GenerationRequest) -> bool:
        try:
            for digest in filter(None, [request.source_digest, request.target_digest]):
                self._image_of(digest, request.source_filter)
        except BadImageError:
            return False
        return True

    def _read(self, digest: str, source_filter: SourceFilter) -> UInt8[Tensor, "3 r r"]:
        return self._sources.square(digest, self._resolution, source_filter)


def _most_images_under_way(slots: Literal["auto"] | int) -> int:
    # Each request has a source and perhaps a target image.
    return 2 * ((MAX_SLOTS if slots == "auto" else slots) + 4 * VAE_BATCH_SIZE)


def _weights(experiment: Experiment) -> Weights | None:
    if experiment.image_weights is not None:
        return experiment.image_weights
    match experiment.config.schedule.priority:
        case "uniform":
            return None
        case "long_tail":
            return rare_class_weights(tuple(experiment.data.class_sizes), balance=1.0)
        case "hard":  # until the classifier has losses
            return [1.0] * len(experiment.data.class_sizes)


def load_generator(experiment: Experiment) -> LoadedEngine:
    """Return the engine that makes an experiment's images: a server, or `load_local_generator`.

    Raises:
        UserError: If model, adapters or gate cannot be used.
    """
    if experiment.config.asks_server:
        from online_aug.generation.server import ServerEngine

        return ServerEngine(experiment.config, _gate_of(experiment))
    return load_local_generator(experiment)


def load_local_generator(experiment: Experiment) -> ImageGenerator:
    """Load the experiment's model onto its device, with its gate, and embed the plan's prompts.

    Raises:
        UserError: If model, adapters or gate cannot be used, or an image server is configured.
    """
    if experiment.config.asks_server:
        raise UserError(
            "generation.engine must be local where the steps of the model are measured, got openai"
        )
    config, gate = experiment.config, _gate_of(experiment)
    generator = ImageGenerator.load(
        experiment.diffusion.model,
        experiment.diffusion.adapters,
        config.generation,
        experiment.diffusion.dtype,
        experiment.device,
        gate,
    )
    for name, method in experiment.methods.items():
        if method.generates:
            generator.embed(method.prompts(experiment.contexts[name]))
    return generator


def _gate_of(experiment: Experiment) -> Gate:
    sources = SourceImages(experiment.splits.train, experiment.data.sources)
    return build_gate(
        experiment.judge.named_in(experiment.config),
        len(experiment.splits.train.class_names),
        sources.by_digest,
        experiment.data.digests,
        experiment.device,
    )


def share_device(engine: ImageEngine, device: str, share: float) -> ImageEngine:
    """Return the engine; one that rests for `share` of the time if its device is shared."""
    if not share:
        return engine
    return DutyCycle(engine, share, finish=lambda: torch.cuda.synchronize(device))


class DutyCycle:
    """An engine that rests after each step, so that another process has the device meanwhile.

    While it rests the other process has the device alone, else they divide it, so the other keeps
    at least `share` of its speed. Processes on one GPU take turns, and priorities of streams count
    only within a process: only pauses reach across.
    """

    def __init__(
        self,
        engine: ImageEngine,
        share: float,
        *,
        finish: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take an engine that is ready.

        Args:
            engine: Does the work.
            share: Part of the time to leave to others, in [0, 1).
            finish: Waits until the device has done what it was given.
            clock: Tells seconds.
            sleep: Lets seconds pass.
        """
        self._engine, self._share = engine, share
        self._finish, self._clock, self._sleep = finish, clock, sleep

    @property
    def room(self) -> int:
        """How many more requests keep it busy."""
        return self._engine.room

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in, and the function that prepares their starting images."""
        self._engine.submit(requests, prepare)

    def step(self) -> list[Finished]:
        """Go on a little, then rest; return what is finished by then."""
        began = self._clock()
        finished = self._engine.step()
        self._finish()
        self._sleep((self._clock() - began) * self._share / (1 - self._share))
        return finished

    def drop(self) -> None:
        """Forget what is not finished."""
        self._engine.drop()
