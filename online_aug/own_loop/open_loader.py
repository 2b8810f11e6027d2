"""`open_loader`: batches of real and generated images for a training loop of one's own."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config, resolved_yaml
from online_aug.data.map_style.copied import copy_of
from online_aug.data.sources import load_splits
from online_aug.diffusion.compatibility import settle
from online_aug.distributed.devices import DevicePlan, check_unused, plan_devices
from online_aug.distributed.world import World, share
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.saliency import check_saliency
from online_aug.loader.loader import OnlineAugLoader
from online_aug.loader.pool import check_writable
from online_aug.own_loop.feedback import LoopFeedback, check_feedback
from online_aug.own_loop.ranks import Place, own_place
from online_aug.own_loop.transform import OwnTransform
from online_aug.producer.preparation import prepare_generation
from online_aug.reporting.run_directory import CONFIG_FILE
from online_aug.training.build_loader import build_loader, check_sequence, check_served


def open_loader(  # noqa: PLR0913 - each is a word of the caller's, by name
    config: Config | Path | str,
    *,
    dataset: Any = None,
    class_names: Sequence[str] | None = None,
    transform: Callable[..., Any] | None = None,
    mode: Literal["batches", "index"] = "batches",
    rank: int | None = None,
    world_size: int | None = None,
    pin_memory: bool | None = None,
    prepare: bool = True,
    **overrides: Any,
) -> OnlineAugLoader:
    """Open a loader whose generation process runs, for a training loop of one's own.

    What generation needs first, a fine-tuned model or saliency maps, is made before this returns,
    with a progress bar. The generation process ends with `close` or the `with` block. No signal
    handler stays, no global state is changed. Call it from the main thread.

    Args:
        config: A configuration, a YAML file, or the name of a recipe that comes with the package.
        dataset: Training images in the place of `data.source`: a map-style data set of pairs
            (image, label), whose images are PIL, arrays or tensors. It is copied into `data.root`.
        class_names: Names of its classes by label; None takes its own `classes`.
        transform: Makes a tensor of a PIL image; None makes uint8 of `data.image_size`.
        mode: `index` yields lists of slots for `loader.dataset.read`, instead of batches.
        rank: Number of this process, which gets its share of each batch; None asks torch.
        world_size: Number of processes that train together.
        pin_memory: Whether batches lie in pinned memory; None does it if there is a GPU to train.
        prepare: False refuses what would have to be made first.
        overrides: Values that replace those of `config`, by section, such as
            `cache={"path": "my_cache"}`, or by key, such as `**{"cache.path": "my_cache"}`.

    Raises:
        UserError: If something in the configuration or the data set cannot be used.
        CacheError: If the cache cannot be used.

    Example:
        with open_loader("quickstart", cache={"path": "my_cache"}) as loader:
            for epoch in range(10):
                for images, labels in loader:
                    train(images, labels)
    """
    _check_words(transform, mode)
    place = own_place(rank, world_size)
    folder = Path(mkdtemp(prefix="online-aug-"))
    try:
        chosen = _chosen(config, overrides, dataset, class_names, folder / CONFIG_FILE)
        opening = _checked(chosen, place)
        _prepare(opening, prepare=prepare)
        loader = _build(opening, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    loader.mode = mode
    if transform is not None:
        loader.dataset.transform = OwnTransform(transform)  # type: ignore[attr-defined]
    loader.pin_memory = loader.pin_memory if pin_memory is None else pin_memory
    loader.start()
    return loader


def _chosen(
    config: Config | Path | str,
    overrides: Mapping[str, Any],
    dataset: object,
    class_names: Sequence[str] | None,
    path: Path,
) -> Config:
    """Return the configuration that the caller's words make, with a copy of his data set."""
    if dataset is None:
        return _load(config, overrides, path)
    chosen = _load(config, {f"data.{key}": None for key in _CUTS} | dict(overrides), path)
    return _with_source(chosen, copy_of(dataset, class_names, chosen.data.root))


def _check_words(transform: object, mode: str) -> None:
    if transform is not None and not callable(transform):
        raise UserError(f"transform must be a function of a PIL image, got {transform!r:.60}")
    if mode not in ("batches", "index"):
        raise UserError(f"mode must be batches or index, got {mode!r:.60}")


_CUTS = ("examples_per_class", "imbalance_factor")
"""Keys of `data` by which a recipe leaves images out: of a caller's own, all are trained on."""
_CTRL_C = 130
"""Exit status of a preparation that Ctrl-C has ended."""


@dataclass(frozen=True)
class _Opening:
    """All that a loader is built of."""

    experiment: Experiment
    devices: DevicePlan
    world: World


def _load(config: Config | Path | str, overrides: Mapping[str, Any], file: Path) -> Config:
    """Apply overrides; a configuration goes through `file`, since a recipe is a file too."""
    if isinstance(config, Config):
        file.write_text(resolved_yaml(config), encoding="utf-8")
        path = file
    else:
        path = find_recipe(str(config))
    return load_config(path, list(_as_lines(overrides)))


def _as_lines(overrides: Mapping[str, Any]) -> Iterator[str]:
    for section, value in overrides.items():
        if "." in section or not isinstance(value, Mapping):
            yield f"{section}={json.dumps(value, default=str)}"
        else:
            for key, each in value.items():
                yield f"{section}.{key}={json.dumps(each, default=str)}"


def _with_source(config: Config, source: Path) -> Config:
    data = config.data.model_copy(update={"source": str(source)})
    return config.model_copy(update={"data": data})


def _checked(config: Config, place: Place) -> _Opening:
    """Refuse what could not be served; write nothing."""
    ranks = place.local_world_size
    devices = plan_devices(config.wished_devices, generates=config.needs_generator, ranks=ranks)
    world = place.world(devices.train)
    if config.optim.batch_size % world.world_size:
        raise UserError(
            f"optim.batch_size must be a multiple of the {world.world_size} ranks, got "
            f"{config.optim.batch_size}"
        )
    splits = load_splits(config.data, config.cache.path)
    config = settle(config)
    experiment = Experiment(config, splits, devices.generator)
    check_writable(config)
    check_saliency(experiment)
    check_feedback(experiment, world)
    experiment.check(generates=bool(devices.generate))
    check_sequence(experiment, resolved_yaml(config))
    if world.is_first_of_node:
        check_unused(devices.generate)
    return _Opening(experiment, devices, world)


def _prepare(opening: _Opening, *, prepare: bool) -> None:
    experiment, devices = opening.experiment, opening.devices
    if not prepare and (missing := list(_missing(experiment))):
        raise UserError(
            f"prepare must be true as long as something has to be made first, got false and no "
            f"{' and no '.join(missing)}: open the loader once with prepare=True, or run "
            "online-aug fill"
        )
    try:
        prepare_generation(experiment, devices.finetune)
    except SystemExit as error:
        if error.code == _CTRL_C:
            raise KeyboardInterrupt from None
        raise
    check_served(experiment, generates=bool(devices.generate))


def _missing(experiment: Experiment) -> Iterator[str]:
    if not experiment.diffusion.is_ready:
        yield f"fine-tuned model in {experiment.diffusion.finetuned}"
    if not experiment.judge.is_ready:
        yield "judge of images (gate.classifier: self)"
    if not experiment.has_maps:
        yield f"saliency maps in {experiment.config.cache.path}"
    if experiment.is_prepared and not experiment.strengths.are_known:
        yield "trials of strengths"


def _build(opening: _Opening, folder: Path) -> OnlineAugLoader:
    experiment, world = opening.experiment, opening.world
    shared = Path(share(world, str(folder).encode()).decode()) if world.control else folder
    (folder / CONFIG_FILE).write_text(resolved_yaml(experiment.config), encoding="utf-8")
    loader = build_loader(experiment, opening.devices, world, folder)
    loader.scratch = folder
    loader.feedback = LoopFeedback(experiment, loader, world, shared)
    return loader
