"""`open_loader`: batches of real and generated images for a training loop of one's own."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from online_aug.config import Config
from online_aug.config.loading import find_recipe, load_config, resolved_yaml
from online_aug.data.sources import load_splits
from online_aug.diffusion.compatibility import settle
from online_aug.distributed.devices import DevicePlan, check_unused, plan_devices
from online_aug.distributed.world import single
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.saliency import check_saliency
from online_aug.loader.loader import OnlineAugLoader
from online_aug.producer.preparation import prepare_generation
from online_aug.reporting.run_directory import CONFIG_FILE
from online_aug.training.build_loader import build_loader, check_sequence


@contextmanager
def open_loader(config: Config | Path | str, **overrides: Any) -> Iterator[OnlineAugLoader]:
    """Open a loader whose generation process runs, for a training loop of one's own.

    What generation needs first, a fine-tuned model or saliency maps, is made before this returns,
    with a progress bar. The generation process ends with the `with` block, however that ends. No
    signal handler is set. The loader is that of a single rank, with `optim.batch_size` images in a
    batch.

    Args:
        config: A configuration, a YAML file, or the name of a recipe that comes with the package.
        overrides: Values that replace those of `config`, by section, such as
            `cache={"path": "my_cache"}`, or by key, such as `**{"cache.path": "my_cache"}`.

    Raises:
        UserError: If something in the configuration cannot be used.
        CacheError: If the cache cannot be used.

    Example:
        with open_loader("quickstart", cache={"path": "my_cache"}) as loader:
            for epoch in range(10):
                loader.set_epoch(epoch)
                for batch in loader:
                    train(batch.images, batch.labels)
    """
    folder = Path(mkdtemp(prefix="online-aug-"))  # an exception leaves it there, with its log
    experiment, devices = _prepare(_load(config, overrides, folder / CONFIG_FILE))
    (folder / CONFIG_FILE).write_text(resolved_yaml(experiment.config), encoding="utf-8")
    with build_loader(experiment, devices, single(devices.train[0]), folder) as loader:
        loader.start()
        yield loader
    shutil.rmtree(folder)


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


def _prepare(config: Config) -> tuple[Experiment, DevicePlan]:
    """Check the configuration, then make what generation needs first."""
    devices = plan_devices(config.devices, generates=config.needs_generator)
    splits = load_splits(config.data, config.cache.path)
    config = settle(config)
    experiment = Experiment(config, splits, devices.generator)
    if experiment.saliency.follows_classifier:
        raise UserError(
            "saliency.teacher must be a file of weights, or saliency.method one that needs no "
            "training, for a loop of one's own, got classifier: only online-aug train makes its "
            "maps"
        )
    check_saliency(experiment)
    experiment.check(generates=bool(devices.generate))
    check_sequence(experiment, resolved_yaml(config))
    check_unused(devices.generate)
    prepare_generation(experiment, devices.finetune)
    return experiment, devices
