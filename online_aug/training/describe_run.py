"""The lines that say what a run is going to do: the main ones at its start, all for `--dry-run`."""

from collections.abc import Iterator

from cache import Store, cache_exists
from cache.text import byte_size, printable
from online_aug.classifier.model import build_classifier
from online_aug.config import Config
from online_aug.console import amount
from online_aug.data.embedded import EMBEDDED_SETS
from online_aug.distributed.devices import DevicePlan
from online_aug.experiment.experiment import Experiment
from online_aug.loader.slots import order_of
from online_aug.loader.workers import shared_memory_warning
from online_aug.planning.held import held_of
from online_aug.settings import decided
from online_aug.training.build_loader import workers_of
from online_aug.training.checkpoints import KEPT

_RAW_BYTES, _FLOAT_BYTES = 3, 4
_WEIGHT_FILES = 2
"""`model.safetensors`, and the best on validation if there is such a split."""
_MUCH_LEFT = 0.1
"""Share of an epoch that is left out and worth a word."""
_ADAM_MOMENTS = 2
"""Numbers that Adam, and most others, keep beside each weight."""


def describe_start(experiment: Experiment, devices: DevicePlan, ranks: int | None = None) -> str:
    """Return what a run says before it starts: devices, data, and what is worth a thought."""
    lines = [
        f"devices    {devices}",
        *_data(experiment),
        *_notes(experiment),
        *_memory(experiment, devices, ranks),
    ]
    lines += [*_server(experiment), *_imports(experiment)]
    return "\n".join(map(printable, lines)) + "\n"


def describe_run(experiment: Experiment, devices: DevicePlan, ranks: int | None = None) -> str:
    """Return what `--dry-run` prints: devices, data, requests, what it takes of the disk.

    Args:
        experiment: The experiment that would be run.
        devices: The devices of this node.
        ranks: Number of ranks of all nodes if a launcher decides it.
    """
    config = experiment.config
    order = order_of(config, experiment.splits.train)
    lines = [
        f"devices    {devices}",
        *_nodes(experiment, devices, ranks),
        *_data(experiment),
        f"training   {amount(config.run.epochs, 'epoch')} of {amount(order.steps, 'step')} of "
        f"{amount(order.batch_size, 'image')}, {amount(order.samples, 'sample')} an epoch",
        *_weights(experiment),
        *_requests(experiment),
        *_preparation(experiment),
        *_notes(experiment),
        *_memory(experiment, devices, ranks),
    ]
    return "\n".join(map(printable, lines)) + "\n"


def _nodes(experiment: Experiment, devices: DevicePlan, ranks: int | None) -> Iterator[str]:
    if not ranks or ranks <= len(devices.train):
        return
    said = f"nodes      {ranks} training devices in all, {len(devices.train)} here"
    makes = experiment.config.is_planned and devices.generate
    yield f"{said}; {who_makes(experiment.config)}" if makes else said


def who_makes(config: Config) -> str:
    """Say which images each of several nodes makes."""
    if config.mixing.starvation == "wait":
        return "each makes the whole plan (mixing.starvation=wait)"
    return "each makes its own part of the plan"


def _data(experiment: Experiment) -> Iterator[str]:
    yield f"data       {experiment.splits}"
    for doubt in experiment.splits.doubts:
        yield f"note       {doubt}"


def _server(experiment: Experiment) -> Iterator[str]:
    config, server = experiment.config, experiment.config.image_server
    if config.asks_server:
        yield f"server     {server.url} has {config.generation.model} ({server.version})"


def _imports(experiment: Experiment) -> Iterator[str]:
    if experiment.imports.images:
        yield f"imported   {experiment.imports}"
    for warning in experiment.imports.warnings:
        yield f"warning    {warning}"


def _requests(experiment: Experiment) -> Iterator[str]:
    if experiment.config.is_composed:
        names = [name for name, method in experiment.methods.items() if not method.generates]
        yield f"composed   by {', '.join(names)} in the loader: no generator, no images to make"
    if not experiment.config.is_planned:
        if not experiment.config.is_composed:
            yield "requests   0 (no generated images are served by a plan)"
        return
    made = experiment.config.generation
    unique = len(experiment.data.digests)
    requests = unique * made.variants_per_image
    yield from _server(experiment)
    yield (
        f"requests   {requests} ({amount(unique, 'source')} x {made.variants_per_image}), each of "
        f"{decided(made.resolution)} px in {made.num_inference_steps} steps"
    )
    size = requests * decided(made.resolution) ** 2 * _RAW_BYTES
    yield f"disk       at most {byte_size(size)} of images (uncompressed size)"


def _weights(experiment: Experiment) -> Iterator[str]:
    config = experiment.config
    if ":" in config.classifier.name:  # described elsewhere: not to be fetched for a count
        return
    bare = config.classifier.model_copy(update={"pretrained": False, "checkpoint": None})
    classes, side = len(experiment.splits.train.class_names), config.data.image_size
    weights = sum(w.numel() for w in build_classifier(bare, classes, image_size=side).parameters())
    optim = config.optim
    moments = (optim.momentum > 0) if optim.name in ("sgd", "momentum") else _ADAM_MOMENTS
    copies = _WEIGHT_FILES + KEPT * (1 + moments + (optim.ema is not None))
    yield (
        f"run        about {byte_size(copies * weights * _FLOAT_BYTES)} of checkpoints and weights "
        f"({config.classifier.name}, {weights / 1e6:.3g} million)"
    )


def _preparation(experiment: Experiment) -> Iterator[str]:
    config = experiment.config
    if experiment.saliency.follows_classifier:
        every = config.saliency.refresh_epochs
        yield f"saliency   by the classifier in training, new maps every {amount(every, 'epoch')}"
    elif not experiment.has_maps:
        images = len(experiment.data.digests)
        saliency = experiment.saliency
        cost = ""
        if saliency.method == "diffusion":
            cost = f", {saliency.by_generator.calls} calls of the network for each"
        yield f"saliency   {saliency.method} of {amount(images, 'image')}, made at the start{cost}"
    yield from _imports(experiment)
    yield from _trials(experiment)
    if experiment.config.is_planned and not experiment.diffusion.is_ready:
        learning = f"{config.finetune.mode}, {experiment.diffusion.adaptation.steps} steps"
        size = byte_size(experiment.diffusion.adaptation.result_bytes(experiment.diffusion.model))
        yield (
            f"fine-tune  {learning} of {config.finetune.batch_size} images, "
            f"result about {size} in {experiment.diffusion.finetuned}"
        )
    elif experiment.plan_is_known:
        yield f"cache      {config.cache.path}: {_present(experiment)} of them are there"


def _trials(experiment: Experiment) -> Iterator[str]:
    if not experiment.judge.is_ready:
        steps, file = experiment.config.gate.steps, experiment.judge.file
        yield f"judge      trained at the start in {steps} steps, result in {file}"
    if not experiment.strengths.are_known:
        for name, settings in experiment.strengths.settings.items():
            tried = ", ".join(f"{strength:g}" for strength in settings.strengths)
            yield (
                f"strength   {name} learns it from {settings.trials} images of each class, made "
                f"at the start at {tried}"
            )


def _present(experiment: Experiment) -> int:
    path = experiment.config.cache.path
    if not cache_exists(path):
        return 0
    with Store(path, readonly=True) as store:
        return int(held_of(store, experiment.plan).there(len(experiment.plan)).sum())


def _notes(experiment: Experiment) -> Iterator[str]:
    config = experiment.config
    order = order_of(config, experiment.splits.train)
    left = order.samples % order.batch_size
    if left > _MUCH_LEFT * order.samples:
        yield (
            f"note       optim.batch_size={order.batch_size} leaves {left} of {order.samples} "
            "samples out of each epoch, others each time: a smaller batch leaves fewer"
        )
    if not config.is_planned:
        return
    edits = len(experiment.data.digests) * config.generation.variants_per_image
    if order.adds and order.added != edits and not experiment.imports.images:
        share = edits / (edits + order.num_images)
        yield (
            f"note       mixing.policy concat adds {order.added} of {edits} generated images to "
            f"an epoch: mixing.synthetic_probability={share:.4g} adds each once"
        )
    if config.generation.model == "embedded" and config.data.source not in EMBEDDED_SETS:
        yield (
            "note       generation.model=embedded draws 64-px digits and birds and knows nothing "
            "else: name a model of your images' kind (docs/GENERATION.md), or train without "
            "generated images by mixing.synthetic_probability=0"
        )
    if not config.data.metaclass and _prompts_name_classes(experiment):
        prompt = experiment.diffusion.concepts[0].prompt
        yield (
            f'note       data.metaclass is empty, so prompts read "{prompt}": a word that all '
            "classes share, such as flower, tells the model what they are"
        )


def _prompts_name_classes(experiment: Experiment) -> bool:
    return any(method.pipeline == "image_to_image" for method in experiment.methods.values())


def _memory(experiment: Experiment, devices: DevicePlan, ranks: int | None) -> Iterator[str]:
    if not devices.train:
        return
    config, here = experiment.config, len(devices.train)
    sample_bytes = _RAW_BYTES * config.data.image_size**2
    batch_bytes = config.optim.batch_size // (ranks or here) * sample_bytes
    if said := shared_memory_warning(workers_of(config, devices), here, batch_bytes):
        yield f"note       {said}"
