"""Putting a run together: store, generation process, loader; and saying what it will take."""

import os
from collections.abc import Mapping
from pathlib import Path

from cache import Store
from cache.location import is_started
from online_aug.config import Config
from online_aug.dataloader.generator_process import WaitFor
from online_aug.dataloader.loader import OnlineAugLoader
from online_aug.dataloader.mixed_dataset import MixedDataset
from online_aug.dataloader.replay import LEDGER_FOLDER
from online_aug.dataloader.transforms import train_transform
from online_aug.devices import DevicePlan
from online_aug.errors import UserError
from online_aug.generation.fleet import Fleet
from online_aug.generation.place import Place
from online_aug.generation.supervisor import Supervisor
from online_aug.nodes import node_folder, who_makes
from online_aug.recipe import Recipe
from online_aug.recipe_images import BoundCompose
from online_aug.records import ImportedImage, Servable
from online_aug.serving import order_of, sampler_of, supply_of
from online_aug.stores import open_store, pin_if_awaited
from online_aug.training.distributed import World, is_same_everywhere
from online_aug.training.interrupts import Interrupt

_RAW_BYTES = 3


def build_loader(
    recipe: Recipe,
    devices: DevicePlan,
    world: World,
    run_directory: Path,
    interrupt: Interrupt | None = None,
) -> OnlineAugLoader:
    """The loader of one rank; on the first rank of a node it owns the generation processes.

    A single rank that waits for an image gives that up on an interrupt. Of several, each ends the
    step that the others are in.

    Raises:
        UserError: On every rank, if the plan or what was imported is not the same on all.
    """
    config = recipe.config
    store = open_store(config, recipe.splits.train)
    pin_if_awaited(store, config, agreed_plan(recipe, world))
    generator = None
    if world.is_first_of_node and devices.generate and recipe.is_synthetic:
        generator = build_generators(devices, node_folder(config, world, run_directory))

    def is_stopping() -> bool:
        return interrupt is not None and bool(interrupt.received) and world.world_size == 1

    if recipe.is_synthetic and recipe.fractals:
        recipe.fractals.ensure()
    served: list[Servable] = [*recipe.plan, *agreed_imports(recipe, world)]
    supply = supply_of(recipe, store, served, world)
    wait_for = WaitFor(store, supply.keys, generator, is_stopping=is_stopping)
    sampler = sampler_of(recipe, supply, wait_for)
    dataset = MixedDataset(
        images=recipe.splits.train,
        plan=served,
        places=recipe.places if recipe.is_synthetic else {},
        compose=BoundCompose(recipe.contexts) if recipe.is_synthetic else None,
        store=store,
        transform=train_transform(config.data),
        seed=config.run.seed,
        skips_bad_images=config.data.on_bad_image == "skip",
    )
    return OnlineAugLoader(
        dataset,
        sampler,
        workers=_workers(config, devices),
        pin_memory=world.device.type == "cuda",
        generator=generator,
        ledger=run_directory / LEDGER_FOLDER,
    )


def agreed_plan(recipe: Recipe, world: World) -> list[bytes]:
    """The keys of the plan.

    Raises:
        UserError: On every rank, if they are not the same on all.
    """
    keys = [request.key for request in recipe.plan]
    if not is_same_everywhere(world, keys):
        raise UserError(
            "the plan must be the same on every node: give each the same images, the same model "
            "and a finetune.path that all share"
        )
    return keys


def agreed_imports(recipe: Recipe, world: World) -> list[ImportedImage]:
    """The imported images to serve, by numbers that mean the same on every rank.

    Raises:
        UserError: On every rank, if they are not the same on all.
    """
    images = recipe.imports.images
    if not images:  # on no rank: where some are asked for, none at all is refused
        return []
    if not is_same_everywhere(world, [image.key for image in images]):
        raise UserError(
            "imported images must be the same on every rank: import the same folders in the same "
            "order into the cache of each node, and none while a run starts"
        )
    return images


def build_generators(devices: DevicePlan, folder: Path) -> Fleet:
    """The generation processes of a node, each on its own device.

    Args:
        devices: Of the node.
        folder: Holds their `config.yaml` and gets their logs.
    """
    count = len(devices.generate)
    return Fleet([_supervisor(devices, number, folder) for number in range(count)])


def _supervisor(devices: DevicePlan, number: int, folder: Path) -> Supervisor:
    device = devices.generate[number]
    visible, seen_as = _alone_visible(device)
    place = Place(
        device=seen_as,
        threads=devices.generate_threads,
        number=number,
        count=len(devices.generate),
        share=devices.share if devices.is_shared(device) else 0.0,
    )
    environment = {"OMP_NUM_THREADS": str(place.threads), "CUDA_VISIBLE_DEVICES": visible}
    config = str(folder / "config.yaml")
    log = folder / f"generator{number or ''}.log"
    command = ["-m", "online_aug.generate", config, place.model_dump_json()]
    return Supervisor(command, log, environment)


def _alone_visible(device: str) -> tuple[str, str]:
    """CUDA_VISIBLE_DEVICES for a process that is to see this device alone, and what it is there."""
    if device == "cpu":
        return "", device
    number = int(device.partition(":")[2])
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number] if names else str(number), "cuda:0"


def describe_run(
    recipe: Recipe, devices: DevicePlan, hosts: Mapping[str, int] | None = None
) -> str:
    """What `--dry-run` prints: devices, machines of a hostfile, data, requests, disk."""
    config, splits = recipe.config, recipe.splits
    order = order_of(config, splits.train)
    unique = len({source.digest for source in recipe.sources})
    requests = unique * config.generation.variants_per_image if recipe.is_planned else 0
    gib = requests * config.generation.resolution**2 * _RAW_BYTES / 2**30
    lines = [
        f"devices    {devices}",
        f"data       {len(splits.train)} train, {len(splits.val)} val, {len(splits.test)} test"
        f" images of {len(splits.train.class_names)} classes, {len(splits.skipped)} left out",
        f"training   {config.run.epochs} epochs of {order.steps} steps of {order.batch_size}",
        f"requests   {requests} ({unique} sources x {config.generation.variants_per_image})",
        f"disk       at most {gib:.2f} GiB of images (uncompressed size)",
    ]
    if hosts:
        named = ", ".join(f"{name} ({ranks})" for name, ranks in hosts.items())
        lines.insert(1, f"nodes      {named}: {sum(hosts.values())} training devices in all")
        if requests and devices.generate and len(hosts) > 1:
            lines[1] += f"; {who_makes(config)}"
    if recipe.saliency.follows_classifier:
        every = config.saliency.refresh_epochs
        lines.append(f"saliency   by the classifier in training, new maps every {every} epochs")
    elif not recipe.has_maps:
        lines.append(f"saliency   {config.saliency.method} of {unique} images, made at the start")
    if recipe.imports.images:
        lines.append(f"imported   {recipe.imports}")
    if recipe.is_planned and not recipe.is_ready:
        learning = f"{config.finetune.mode}, {recipe.adaptation.steps} steps"
        lines.append(f"fine-tune  {learning}, result {recipe.finetuned}")
    elif recipe.plan_is_known:
        lines.append(f"cache      {config.cache.path}: {_present(recipe)} of them are there")
    return "\n".join(lines) + "\n"


def _present(recipe: Recipe) -> int:
    """Requests of the plan that the cache holds; a cache that is not there is not made."""
    path = recipe.config.cache.path
    if not is_started(path):
        return 0
    with Store(path, readonly=True) as store:
        return sum(store.contains([request.key for request in recipe.plan]))


def _workers(config: Config, devices: DevicePlan) -> int:
    """Loader processes: none on a machine so small that they would take the classifier's core."""
    if config.data.workers is not None:
        return config.data.workers
    cores = len(os.sched_getaffinity(0)) // len(devices.train)
    return 0 if cores <= 2 else min(8, cores - 1)
