"""The loader of one rank, put together from an experiment and the devices of its node.

`build_loader` reads from top to bottom: cache, generation processes, sample pool, sampler, data
set. What is checked or said about a run before it starts stands behind it.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from cache import Store, cache_exists
from online_aug.config import Config
from online_aug.cores import usable_cores
from online_aug.data.transforms import frame_of, train_transform
from online_aug.distributed.devices import DevicePlan
from online_aug.distributed.world import World, agree, is_same_everywhere
from online_aug.errors import UserError, first_line
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import BoundCompose, ComposedSamples
from online_aug.loader.back_pressure import BackPressure, limiter_of
from online_aug.loader.choices import ByClass
from online_aug.loader.dataset import MixedDataset, foregrounds_of
from online_aug.loader.head_start import HeadStart
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import SamplePool, open_store, pin_if_awaited
from online_aug.loader.sampler import BatchSampler, Filler, Mixing, Replay, WaitFor
from online_aug.loader.slots import LEDGER_FOLDER, Ledger, Order, order_of
from online_aug.planning import Listed, Served
from online_aug.planning.held import held_of, holds_any, rejected_of
from online_aug.processes import Interrupt
from online_aug.producer.request_order import There
from online_aug.producer.standing import is_being_made
from online_aug.reporting.run_directory import CONFIG_FILE, check_same_sequence
from online_aug.request import ImportedImage
from online_aug.training import checkpoints
from online_aug.training.generators import Generation, build_generators, node_folder


def build_loader(
    experiment: Experiment,
    devices: DevicePlan,
    world: World,
    run_directory: Path,
    interrupt: Interrupt | None = None,
    generation: Generation | None = None,
) -> OnlineAugLoader:
    """Build the loader of one rank; on the first rank of a node it owns the generation processes.

    A single rank that waits for an image stops waiting on an interrupt. One of several ranks first
    ends the step that the others are in.

    Args:
        experiment: Checked, fine-tuned, and with its saliency maps.
        devices: Devices of this node.
        world: This rank among all ranks.
        run_directory: Folder that holds `config.yaml` and gets the ledger and the generators' logs.
        interrupt: Tells whether the run is to stop.
        generation: What generates, if it was started before; None starts it with the first batch.

    Raises:
        UserError: On every rank, if plan or imported images are not the same on all of them.
    """
    config = experiment.config
    store = open_store(config, experiment.splits.train)
    check_same_plan(experiment, world)
    pin_if_awaited(store, config, experiment.plan)
    generation = generation or _own_generation(config, devices, world, run_directory)
    generator = generation.processes

    def is_stopping() -> bool:
        return interrupt is not None and bool(interrupt.received) and world.world_size == 1

    experiment.write_resources()
    served = Served([experiment.plan, Listed(agreed_imports(experiment, world))])
    pool = pool_of(experiment, store, served, world)
    if generation.position is not None and generation.position < pool.position_at_start:
        pool.start(generation.position, {})  # what was made meanwhile was made in this run
    pressure = BackPressure(pool, generator, limiter_of(config))
    wait_for = WaitFor(store, served, generator, is_stopping=is_stopping)
    filler = filler_of(experiment, pool, pressure, wait_for)
    sampler = BatchSampler(order_of(config, experiment.splits.train), pool, filler)
    loader = OnlineAugLoader(
        _dataset(experiment, store, served),
        sampler,
        workers=workers_of(config, devices),
        pin_memory=world.device.type == "cuda",
        pressure=pressure,
        ledger=run_directory / LEDGER_FOLDER,
    )
    if config.is_planned and config.run.replay is None:  # on all ranks, or on none
        loader.head_start = HeadStart(
            config.mixing.head_start,
            pool,
            generator,
            is_stopping=lambda: interrupt is not None and bool(interrupt.received),
            agree=lambda value: agree(world, value),
        )
    return loader


def _own_generation(
    config: Config, devices: DevicePlan, world: World, run_directory: Path
) -> Generation:
    """Return processes that begin with the first batch, on the first rank of a node."""
    if not (world.is_first_of_node and devices.generate and config.is_planned):
        return Generation(None)
    folder = node_folder(config, world, run_directory)
    return Generation(build_generators(devices, folder))


def _dataset(experiment: Experiment, store: Store, served: Served) -> MixedDataset:
    config = experiment.config
    return MixedDataset(
        images=experiment.splits.train,
        plan=served,
        places=experiment.data.places if experiment.is_synthetic else {},
        compose=BoundCompose(experiment.parts) if experiment.is_synthetic else None,
        compose_alone=ComposedSamples.of(experiment) if config.is_composed else None,
        store=store,
        transform=train_transform(config.data),
        seed=config.run.seed,
        skips_bad_images=config.data.on_bad_image == "skip",
        restores_size=frame_of(config.data).follows_aspect,
        foregrounds=foregrounds_of(config, experiment.splits.train.labels),
    )


def check_same_plan(experiment: Experiment, world: World) -> None:
    """Refuse a run whose plan is not the same on all ranks.

    Raises:
        UserError: On every rank, if so.
    """
    if not is_same_everywhere(world, [experiment.plan.digest]):
        raise UserError(
            "the plan must be the same on every node: give each the same images, the same model "
            "and a finetune.path and gate.path that all share"
        )


def agreed_imports(experiment: Experiment, world: World) -> list[ImportedImage]:
    """Return the imported images to serve, in the same order on every rank.

    Raises:
        UserError: On every rank, if they are not the same on all of them.
    """
    images = experiment.imports.images
    if not images:  # nor on any other rank: if some are asked for, finding none is refused
        return []
    if not is_same_everywhere(world, [image.key for image in images]):
        raise UserError(
            "imported images must be the same on every rank: import the same folders in the same "
            "order into the cache of each node, and none while a run starts"
        )
    return images


def workers_of(config: Config, devices: DevicePlan) -> int:
    """Return the number of worker processes of each rank."""
    if config.data.workers is not None:
        return config.data.workers
    cores = usable_cores() // len(devices.train)
    return 0 if cores <= 2 else min(8, cores - 1)  # with few cores they would slow the classifier


_LOOK_EVERY_S = 0.5
SHARED_WITHIN_S = 60.0
"""Time after which a network file system shows a new file to other machines."""


def check_shared(world: World, run_directory: Path) -> None:
    """Refuse a run directory that is not the same folder on every node; all ranks call it.

    Raises:
        UserError: On every rank, if one does not see what the first has written there.
    """
    until = time.monotonic() + SHARED_WITHIN_S
    while not (is_seen := (run_directory / CONFIG_FILE).is_file()) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
    if agree(world, int(not is_seen)):
        raise UserError(
            f"run.dir must be a folder that all nodes share, {run_directory} is not the same on all"
        )


def pool_of(
    experiment: Experiment, store: Store, served: Served, world: World | None = None
) -> SamplePool:
    """Return the pool of a rank; without a world it may serve all images."""
    return SamplePool(
        served,
        store,
        rank=world.rank if world else 0,
        world_size=world.world_size if world else 1,
        max_times_sampled=experiment.config.mixing.max_times_sampled,
        local=(world.local_rank, world.local_world_size) if world else None,
    )


def filler_of(
    experiment: Experiment,
    pool: SamplePool,
    pressure: BackPressure,
    wait_for: Callable[[int], bool],
) -> Filler:
    """Return what fills the slots of a rank: the configuration, or the ledger of `run.replay`."""
    config = experiment.config
    if config.run.replay is not None:
        return _replay(experiment, pool, config.run.replay)
    order = order_of(config, experiment.splits.train)
    digests = experiment.data.sources.digests if experiment.is_synthetic else []
    filler = Mixing(order, pool, config.mixing, wait_for, pressure=pressure, digests=digests)
    if config.mixing.class_balance and experiment.is_synthetic:
        filler.by_class = ByClass(experiment.data.class_sizes, config.mixing.class_balance)
        pool.group(filler.by_class)
    return filler


def check_sequence(experiment: Experiment, resolved_yaml: str) -> None:
    """Refuse a sequence of images that cannot be served; write nothing.

    Raises:
        UserError: If a batch is larger than an epoch, a class has a probability that does not
            exist, or the run to be replayed is one of other images, or its images are gone.
    """
    config = experiment.config
    order = order_of(config, experiment.splits.train)
    _check_batch(order)
    if config.run.replay is None:
        return
    check_same_sequence(config.run.replay, resolved_yaml)
    check_foregrounds(experiment, config.run.replay, "run.replay")
    if not experiment.is_synthetic or experiment.saliency.follows_classifier:
        return  # the maps that the plan is made by come epoch by epoch
    if not config.is_planned and not experiment.imports.images:  # nothing of the cache is served
        folder = config.run.replay / LEDGER_FOLDER
        Ledger(folder, batch_size=order.batch_size, steps=order.steps).numbers(config.run.epochs)
        return
    if not cache_exists(config.cache.path):
        raise UserError(f"cache.path must be the cache of run.replay, {config.cache.path} is none")
    with Store(config.cache.path, readonly=True) as store:
        served = Served([experiment.plan, Listed(experiment.imports.images)])
        pool = pool_of(experiment, store, served)
        _replay(experiment, pool, config.run.replay).check(config.run.epochs)


def check_foregrounds(experiment: Experiment, run: Path, key: str = "run.resume") -> None:
    """Refuse to resume or to replay a run that was made with other foregrounds; write nothing.

    Masks in a folder and weights of a teacher can change while the configuration stays the same. A
    run without a checkpoint, or of an earlier version, does not say what it was made with.

    Args:
        experiment: The experiment to be run.
        run: Folder of the run, which may not exist.
        key: Configuration key by which that run is used.

    Raises:
        UserError: If so, or if the checkpoint cannot be read.
    """
    saliency, step = experiment.saliency, checkpoints.newest_step(run / checkpoints.FOLDER)
    if step is None or not saliency.is_needed or not saliency.is_known:
        return
    path = checkpoints.checkpoint_path(run / checkpoints.FOLDER, step)
    try:
        state = torch.load(checkpoints.own_state_path(path, rank=0), weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise checkpoints.unreadable(path, first_line(error)) from None
    then = state.get("foregrounds", saliency.version)
    if then != saliency.version:
        raise UserError(
            f"{key} needs the foregrounds that {run} was made with ({then}), saliency.method gives "
            f"others now ({saliency.version}): put masks or weights back as they were, or start a "
            "new run (run.name)"
        )


def _check_batch(order: Order) -> None:
    if order.batch_size > order.samples:
        raise UserError(
            f"optim.batch_size must be at most {order.samples}, the samples of an epoch, got "
            f"{order.batch_size}; take fewer, or raise data.epoch_repeats"
        )


def check_served(experiment: Experiment, *, generates: bool) -> None:
    """Refuse a run that makes no images and lacks those it has to serve; write nothing.

    Raises:
        UserError: If the cache has none, or lacks some that the run would wait for, and no other
            process is making them.
    """
    config = experiment.config
    if generates or config.run.replay is not None or experiment.imports.images:
        return
    if not experiment.plan_is_known:  # nothing is planned, or its maps come epoch by epoch
        return
    plan = experiment.plan
    if cache_exists(config.cache.path):
        is_awaited = config.mixing.starvation == "wait"
        with Store(config.cache.path, readonly=True) as store:
            if not is_awaited and holds_any(store, plan):
                return
            there = held_of(store, plan).there(len(plan))
            if is_being_made(store, plan, there):  # by a process that is filling the cache
                return
            if is_awaited:
                _check_whole(experiment, store, there)
        if there.any():
            return
    raise UserError(
        f"cache.path must hold images of this recipe if devices.generate is none, got 0 of "
        f"{len(plan)} in {config.cache.path}: make them first (online-aug fill), or train without "
        "(mixing.synthetic_probability=0)"
    )


def needed_of(experiment: Experiment) -> int:
    """Return how many images of the plan, from its start, a run that waits for them may ask for."""
    config, planned = experiment.config, len(experiment.plan)
    if config.mixing.policy != "global":
        return planned  # each image's own variants are drawn
    order, wanted = order_of(config, experiment.splits.train), 0
    for epoch in range(config.run.epochs):
        wanted += int(order.kinds(epoch)[0].sum())
        if wanted >= planned:
            break
    return min(wanted, planned)


def _check_whole(experiment: Experiment, store: Store, there: There) -> None:
    config, needed = experiment.config, needed_of(experiment)
    is_missing = ~there[:needed]
    rejected = [number for number in rejected_of(store, experiment.plan) if number < needed]
    is_missing[rejected] = False
    missing = int(is_missing.sum())
    if missing:
        raise UserError(
            f"cache.path must hold all images that the run waits for if devices.generate is none, "
            f"{config.cache.path} lacks {missing:,} of {needed:,}: make them first (online-aug "
            "fill with the same recipe and keys), or serve real ones instead "
            "(mixing.starvation=substitute)"
        )


def _replay(experiment: Experiment, pool: SamplePool, run: Path) -> Replay:
    return Replay(order_of(experiment.config, experiment.splits.train), pool, run)
