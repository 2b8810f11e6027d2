"""Faults of a run's generator: a model that makes NaN, a disk that is full."""

import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import copy_with
from tiny_runs import (
    PLANNED,
    Launch,
    count_images,
    generators_of,
    processes_of,
    read_summary,
    run_folder,
    start,
    wait_for,
)

from cache import Store

pytestmark = pytest.mark.slow

PLAIN = "finetune.enabled=false"
IMAGES = "generation.dtype must be a number format in which the model makes images, got 32 in a row"


def spoil(model, folder, value):
    """A copy of a model whose U-Net ends with this value in every weight of its last layer."""
    copy = copy_with(model, folder)
    (path,) = (copy / "unet").glob("*.safetensors")
    tensors = load_file(path)
    tensors["conv_out.weight"] = torch.full_like(
        tensors["conv_out.weight"], value, dtype=torch.float32
    )
    save_file(tensors, path)
    return copy


def only_error(launch):
    (line,) = [line for line in launch.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in launch.err
    return line


def test_a_model_that_makes_nan_ends_a_run_in_one_line_and_stores_nothing(
    config, tiny_model, tmp_path
):
    overflows = 3e38  # finite itself
    model, cache = spoil(tiny_model, tmp_path / "model", overflows), tmp_path / "cache"
    launch = start(config, tmp_path.name, f"generation.model={model}", f"cache.path={cache}", PLAIN)
    assert launch.wait() == 2
    assert only_error(launch).startswith(f"error: generation process: {IMAGES}")
    assert "restart" not in launch.err
    assert count_images(cache) == 0
    assert processes_of(config.parent, tmp_path.name) == []


def test_a_spoilt_model_is_said_before_it_is_fine_tuned(config, tiny_model, tmp_path):
    model = spoil(tiny_model, tmp_path / "model", float("nan"))
    launch = Launch("-m", "online_aug", "fill", config, f"generation.model={model}")
    assert launch.wait() == 2
    assert only_error(launch).startswith("error: generation.model must have finite weights")


@pytest.fixture(scope="module")
def full(config):
    """A run whose generation process can write no more to the cache from some image on."""
    cache, name = config.parent / "full_cache", "full"
    wishes = [f"cache.path={cache}", "cache.codec=raw", PLAIN]
    launch = start(config, name, *wishes)
    wait_for(lambda: count_images(cache) >= 8, launch)
    (generator,) = generators_of(run_folder(config, name))
    size = (cache / "data.mdb").stat().st_size
    resource.prlimit(generator, resource.RLIMIT_FSIZE, (size, size))
    launch.wait()
    with Store(cache, readonly=True) as store:
        kept = {key: store.get(key).image.tobytes() for _, key in store.tail()}
    again = start(config, name, *wishes).succeed()
    return launch, again, kept, cache


def test_a_full_disk_ends_a_run_that_waits_for_images_in_one_line(full, config):
    launch = full[0]
    assert launch.process.returncode == 2
    line = only_error(launch)
    assert line.startswith("error: mixing.starvation: wait needs image ")
    assert "the disk is full, or a quota or file size limit was met" in line
    assert "restart" not in launch.err


def test_what_was_stored_before_the_disk_was_full_stays_and_the_same_command_goes_on(full, config):
    _, again, kept, cache = full
    assert 8 <= len(kept) < PLANNED
    assert "resumed at epoch" in again.out
    assert read_summary(run_folder(config, "full"))["generator_restarts"] == 0
    with Store(cache) as store:
        assert store.verify().is_clean
        assert len(store) == PLANNED
        assert all(store.get(key).image.tobytes() == image for key, image in kept.items())
