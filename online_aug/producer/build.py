"""What works through the plan of an experiment: its requests, their images, the loaded model.

A generator that leaves part of its device's time to another process.

The classifier that judges generated images: its weights, its version, its opinion.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from online_aug.classifier.model import build_classifier, check_name, input_statistics
from online_aug.config import Config
from online_aug.data.images import BadImageError
from online_aug.data.transforms import fit_square, normalise
from online_aug.diffusion.compatibility import MAX_SLOTS
from online_aug.errors import UserError
from online_aug.experiment.contexts import clip_references, target_weights
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import SourceImages
from online_aug.generation.engine import Finished, ImageGenerator
from online_aug.generation.gate import Classify, ClassRule, Gate, Score, ScoreRule, to_bytes
from online_aug.generation.inputs import Prepare, fit
from online_aug.generation.vae import TOGETHER
from online_aug.loader.back_pressure import max_ahead_of_each
from online_aug.producer.request_queue import Stripe, Weights, part_of
from online_aug.producer.service import Generates, Work
from online_aug.request import GenerationRequest

UNREADABLE = "unreadable source"
"""Why requests are rejected whose image was lost meanwhile, where `data.on_bad_image` is skip."""


def work_of(experiment: Experiment, number: int = 0, count: int = 1) -> Work:
    """The plan, and what its images start from.

    Args:
        experiment: Ready to be planned.
        number: Of this process among those of this machine, from 0: each begins with its part.
        count: Of them.
    """
    config = experiment.config
    sources = SourceImages(experiment.splits.train, experiment.sources)
    resolution = config.generation.resolution

    @lru_cache(_images_under_way(config.generation.slots))  # what was accepted can be prepared
    def image_of(digest: str) -> torch.Tensor:
        return fit(sources.by_digest(digest), resolution)

    def prepare(requests: Sequence[GenerationRequest]) -> torch.Tensor:
        images = torch.stack([image_of(request.source_digest) for request in requests])
        kept = torch.zeros_like(images[:, :1])
        for name, method in experiment.methods.items():
            places = [place for place, request in enumerate(requests) if request.method == name]
            if places:
                some = [requests[place] for place in places]
                context = experiment.context_for(some[0])  # maps of one plan, so the same for all
                images[places] = method.prepare(images[places], some, context, image_of)
                kept[places, 0] = method.foreground(some, context, resolution).byte()
        return torch.cat([images, kept], dim=1)

    def refusal(request: GenerationRequest) -> str | None:
        if config.data.on_bad_image == "skip" and not _can_be_read(request, image_of):
            return UNREADABLE
        return experiment.methods[request.method].refusal(request, experiment.context_for(request))

    schedule = config.schedule

    def plan_of(version: str) -> list[GenerationRequest]:
        return part_of(experiment.plan_of(version), schedule)

    return Work(
        plan=part_of(experiment.plan, schedule),
        plan_of=plan_of if experiment.saliency.follows_classifier else None,
        prepare=prepare,
        refusal=refusal,
        max_ahead=max_ahead_of_each(config, count),
        stripe=Stripe.of(schedule).split(number, count),
        weights=_weights(experiment),
        follows_losses=schedule.priority == "hard",
    )


def _images_under_way(slots: Literal["auto"] | int) -> int:
    """Sources and targets of all requests that are accepted and not yet prepared."""
    return 2 * ((MAX_SLOTS if slots == "auto" else slots) + 4 * TOGETHER)


def _can_be_read(request: GenerationRequest, image_of: Callable[[str], torch.Tensor]) -> bool:
    try:
        for digest in filter(None, [request.source_digest, request.target_digest]):
            image_of(digest)
    except BadImageError:
        return False
    return True


def _weights(experiment: Experiment) -> Weights | None:
    if experiment.image_weights is not None:
        return experiment.image_weights
    match experiment.config.schedule.priority:
        case "uniform":
            return None
        case "long_tail":
            return target_weights(experiment.class_sizes, balance=1.0)
        case "hard":  # until the classifier has losses
            return [1.0] * len(experiment.class_sizes)


def load_generator(experiment: Experiment) -> ImageGenerator:
    """The experiment's model on its device, with the judge of its images and the plan's prompts.

    Raises:
        UserError: If model, adapters or judge cannot be used.
    """
    config = experiment.config
    generator = ImageGenerator.load(
        experiment.model,
        experiment.adapters,
        config.generation,
        experiment.dtype,
        experiment.device,
        build_gate(experiment),
    )
    generator.keep_latents_in(config.cache.path, config.generation.latents_gib * 2**30)
    generator.learn([request.prompt for request in experiment.plan])
    return generator


class DutyCycle:
    """Steps, then rests long enough for the other process to have the device for its share.

    While it rests the other has the device alone, else they divide it: so the other keeps at least
    `share` of its speed. Processes on one GPU take turns, and priorities of streams count only
    within a process: pauses are what reaches across.
    """

    def __init__(
        self,
        generator: Generates,
        share: float,
        *,
        finish: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take a generator that is ready.

        Args:
            generator: Does the work.
            share: Of the time to leave to others, in [0, 1).
            finish: Waits until the device has done what it was given.
            clock: Tells seconds.
            sleep: Lets seconds pass.
        """
        self._generator, self._share = generator, share
        self._finish, self._clock, self._sleep = finish, clock, sleep

    @property
    def room(self) -> int:
        """How many more requests keep it busy."""
        return self._generator.room

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in, and what prepares them."""
        self._generator.submit(requests, prepare)

    def step(self) -> list[Finished]:
        """Go on a little, then rest; gives what is finished by then."""
        began = self._clock()
        finished = self._generator.step()
        self._finish()
        self._sleep((self._clock() - began) * self._share / (1 - self._share))
        return finished

    def drop(self) -> None:
        """Forget what is not finished."""
        self._generator.drop()


def share_device(generator: Generates, device: str, share: float) -> Generates:
    """The generator, resting where its device is shared."""
    if not share:
        return generator
    return DutyCycle(generator, share, finish=lambda: torch.cuda.synchronize(device))


def check_judge(experiment: Experiment) -> None:
    """Refuse a judge that does not know these classes, before anything is started or written.

    Raises:
        UserError: If its name is unknown, its file does not hold weights of it for the classes,
            there is a rule without a judge or a judge without a rule, or CLIP cannot be loaded or
            has nothing to look for.
    """
    gate = experiment.config.gate
    if gate.has_rule and gate.classifier is None:
        raise UserError(
            "gate.classifier must be a file of weights where gate.min_probability or gate.top_k "
            "is set, got null"
        )
    if gate.classifier is not None and not gate.has_rule:
        raise UserError(
            "gate.min_probability or gate.top_k must be set where gate.classifier is, got neither "
            f"with {gate.classifier}"
        )
    if experiment.is_synthetic and gate.clip is not None:
        _clip_score(experiment)
    if experiment.is_synthetic and gate.classifier is not None:
        _build_judge(experiment.config, len(experiment.splits.train.class_names))


def build_gate(experiment: Experiment) -> Gate:
    """What finished images have to pass, its models on the generator's device.

    Raises:
        UserError: As `check_judge`.
    """
    config = experiment.config
    clip = None if config.gate.clip is None else _clip_rule(experiment)
    if config.gate.classifier is None:
        return Gate(clip=clip)
    judge = (
        _build_judge(config, len(experiment.splits.train.class_names)).to(experiment.device).eval()
    )
    rule = ClassRule(min_probability=config.gate.min_probability, top_k=config.gate.top_k)
    return Gate(opinion_of(judge, config.gate.image_size or config.data.image_size), rule, clip)


def opinion_of(judge: nn.Module, side: int) -> Classify:
    """Class probabilities by a classifier that looks at squares of `side` px."""
    mean, std = input_statistics(judge)
    device = next(judge.parameters()).device

    def classify(images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b k"]:
        seen = torch.stack([fit_square(to_bytes(image), side) for image in images])
        return F.softmax(judge(normalise(seen.to(device), mean, std)).float(), dim=1)

    return classify


def _clip_rule(experiment: Experiment) -> ScoreRule:
    """CLIP's score of the training images tells how low is too low."""
    images = SourceImages(experiment.splits.train, experiment.sources)
    score, resolution = _clip_score(experiment), experiment.config.generation.resolution
    scores: list[float] = []
    for digest in clip_references(experiment.digests):
        try:
            image = fit(images.by_digest(digest), resolution) / 255
        except BadImageError:
            if experiment.config.data.on_bad_image != "skip":
                raise
            continue
        scores += score(image.unsqueeze(0)).tolist()
    return ScoreRule(
        score=score, least=float(np.quantile(scores, experiment.config.gate.clip_drop))
    )


def _clip_score(experiment: Experiment) -> Score:
    from online_aug.generation.gate import clip_score  # transformers: slow to import

    config = experiment.config
    if not config.data.metaclass.strip():
        raise UserError(
            "data.metaclass must say what CLIP is to look for where gate.clip is set, such as "
            f"bird, got {config.data.metaclass!r}"
        )
    assert config.gate.clip is not None  # asked for where it is
    return clip_score(config.gate.clip, config.data.metaclass, experiment.device)


def _build_judge(config: Config, num_classes: int) -> nn.Module:
    name = config.gate.name or config.classifier.name
    if config.gate.name is not None:
        check_name(name, "gate.name")
    settings = config.classifier.model_copy(
        update={"name": name, "checkpoint": config.gate.classifier}
    )
    side = config.gate.image_size or config.data.image_size
    return build_classifier(settings, num_classes, image_size=side, key="gate.classifier")
