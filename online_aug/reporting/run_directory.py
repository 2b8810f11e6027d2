"""The run directory: its name, the check that it is free or holds the same run, its files.

`environment.json` says what a run was made with (versions, revision, GPUs); it names no machine.
"""

import json
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from online_aug.config import Config
from online_aug.config.sections import RunConfig
from online_aug.console import amount
from online_aug.cores import usable_cores
from online_aug.documents import (
    MAX_YAML_BYTES,
    DocumentError,
    parse_yaml,
    read_object,
    read_text,
)
from online_aug.errors import UserError
from online_aug.files import check_folder, from_json, to_json, write_atomically
from online_aug.reporting.metrics import Summary

CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE = "config.yaml", "environment.json", "summary.json"
# The evaluation is that on the test split after the last epoch, confusion matrix included.
EVALUATION_FILE, REPORT_FILE = "evaluation.json", "report.html"

MAY_DIFFER = frozenset(
    {
        "run.name", "run.dir", "run.epochs", "run.resume",
        "run.checkpoint_epochs", "run.checkpoint_steps", "run.trackers",
        "data.root", "data.workers", "data.on_bad_image", "finetune.path",
        "cache.path", "cache.max_gib", "cache.eviction", "cache.durability",
        "devices.train", "devices.generate",
        "generation.slots", "generation.attention", "generation.execution", "generation.max_ahead",
        "schedule.stripe", "schedule.stripes",
    }
)  # fmt: skip
"""Keys that do not change what is computed: a run may be resumed with other values."""
_SAME_AT_ANY_LENGTH = ("constant", "step", "multistep")
"""Schedules that do not depend on `run.epochs`."""


def run_folder(run: RunConfig, config_path: Path) -> Path:
    """Return the run directory: `run.name`, or the recipe's name and seed, under `run.dir`."""
    return run.dir / (run.name or f"{config_path.stem}-seed{run.seed}")


def check_room(path: Path, resolved_yaml: str, resume: bool) -> None:
    """Refuse a run directory that `prepare` would refuse; write nothing.

    Raises:
        UserError: If it cannot be written, holds something else or, with `resume`, another run.
    """
    check_folder(path, "run directory")
    if not _is_occupied(path):
        return
    if not (path / CONFIG_FILE).exists():
        raise UserError(
            f"run directory {path} must be new, empty or an earlier run, got a folder without "
            f"{CONFIG_FILE}; choose another run.name"
        )
    if resume:
        _check_same_run(path, resolved_yaml)


def prepare(path: Path, resolved_yaml: str, digest: str, resume: bool) -> Path | None:
    """Make the run directory with `config.yaml` and `environment.json`.

    A directory of the same run is kept and its two files are renewed; earlier launches stay listed
    in `environment.json`. Without `resume` an older run in that place is moved aside first.

    Args:
        path: The run directory; its parents are made.
        resolved_yaml: The whole configuration, defaults included.
        digest: The digest of the configuration, for the record.
        resume: Whether to go on with the run in that place.

    Returns:
        The new place of the older run, or None if nothing was moved.

    Raises:
        UserError: If the directory holds another run or something else, or cannot be written.
    """
    try:
        check_room(path, resolved_yaml, resume)
        moved = _move_aside(path) if not resume and _is_occupied(path) else None
        path.mkdir(parents=True, exist_ok=True)
        environment = _environment(path / ENVIRONMENT_FILE, digest)
        write_atomically(path / CONFIG_FILE, resolved_yaml)
        write_atomically(path / ENVIRONMENT_FILE, environment)
    except OSError as error:
        raise UserError(
            f"run directory {path} must be writable, got: {error.strerror}; choose another run.dir"
        ) from None
    return moved


def check_same_sequence(path: Path, resolved_yaml: str) -> None:
    """Refuse a configuration that would not serve the same images as the run in `path`.

    Classifier and optimizer may differ: the images served do not depend on them.

    Raises:
        UserError: If `path` is not a run, or keys that decide the images differ.
    """
    file = path / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"run.replay must be the directory of a run, {path} has no {CONFIG_FILE}")
    old, new = _read_flat(file), _flat(file, resolved_yaml)
    differ = [key for key in _differing(old, new) if not _is_of_training(key)]
    if differ:
        raise UserError(
            f"run.replay must be a run of the same images, {path} differs in "
            f"{_named(differ, old, new)}: set these as they are there"
        )


def is_finished(path: Path, epochs: int) -> bool:
    """Return whether the run in `path` has a summary and at least so many epochs."""
    return (path / SUMMARY_FILE).exists() and read_summary(path).epochs >= epochs


def finished_text(path: Path, epochs: int) -> str | None:
    """Return a line that says when the run in `path` was finished, None if it was not."""
    if not is_finished(path, epochs):
        return None
    when = datetime.fromtimestamp((path / SUMMARY_FILE).stat().st_mtime, UTC).astimezone()
    done = read_summary(path).epochs
    return (
        f"{path} was already finished on {when:%Y-%m-%d %H:%M} ({amount(done, 'epoch')}): "
        "nothing was done. To train again: run.resume=false (this run is then moved to "
        f"{_free_name(path).name}), another run.name or run.seed; to train longer: "
        f"run.epochs above {done}"
    )


def describe_resumption(path: Path, config: Config) -> str:
    """Return a line if a run goes on with another length, which changes its learning rates."""
    file = path / CONFIG_FILE
    if not config.run.resume or not file.is_file():
        return ""
    before, now = _read_flat(file).get("run.epochs"), config.run.epochs
    if before == now or config.optim.schedule in _SAME_AT_ANY_LENGTH:
        return ""
    return (
        f"note       run.epochs was {before}, {now} now: from here on the learning rate is that "
        f"of optim.schedule={config.optim.schedule} over {amount(now, 'epoch')}\n"
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return every key of the configuration of the run in `path`, by its dotted path.

    Raises:
        UserError: If the configuration cannot be read.
    """
    return _read_flat(path / CONFIG_FILE)


def write_summary(path: Path, summary: Summary) -> None:
    """Write `summary.json` into the run directory; from then on the run is finished."""
    write_atomically(path / SUMMARY_FILE, to_json(summary, indent=2) + "\n")


def read_summary(path: Path) -> Summary:
    """Read the summary of the finished run in `path`.

    Raises:
        UserError: If the run is not finished, or another version wrote the summary.
    """
    file = path / SUMMARY_FILE
    if not file.exists():
        raise UserError(f"{file} is missing: the run has not finished; start it again to resume it")
    try:
        return from_json(Summary, read_text(file), str(file))
    except DocumentError as error:
        raise UserError(f"{file} must be the summary of a run: {error}") from None


def _is_occupied(path: Path) -> bool:
    # Dot files are what a crash may leave before config.yaml has its name.
    return path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir())


def _check_same_run(path: Path, resolved_yaml: str) -> None:
    old = _read_flat(path / CONFIG_FILE)
    new = _flat(path / CONFIG_FILE, resolved_yaml)
    way_out = (
        "choose another run.name, or set run.resume=false, which moves the old run "
        f"to {_free_name(path)}"
    )
    if refused := _differing(old, new):
        raise UserError(
            f"run directory {path} must hold the same configuration to be resumed, "
            f"differs in {_named(refused, old, new)}; {way_out}"
        )
    if (path / SUMMARY_FILE).exists() and new["run.epochs"] < (done := read_summary(path).epochs):
        raise UserError(
            f"run.epochs must be at least {done}, which {path} has already done, "
            f"got {new['run.epochs']}; {way_out}"
        )


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = sorted(old.keys() | new.keys())
    return [key for key in keys if key not in MAY_DIFFER and old.get(key) != new.get(key)]


def _named(keys: list[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{k} ({_shown(old, k)} there, {_shown(new, k)} now)" for k in keys)


def _is_of_training(key: str) -> bool:
    is_trained = key.startswith(("classifier.", "optim.")) and key != "optim.batch_size"
    return is_trained or key == "run.replay"


def _move_aside(path: Path) -> Path:
    return path.rename(_free_name(path))


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return name


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], default=str) if key in values else "nothing"


def _read_flat(path: Path) -> dict[str, Any]:
    try:
        return _flat(path, read_text(path, limit=MAX_YAML_BYTES))
    except DocumentError as error:
        raise UserError(f"{path} must be the configuration of a run: {error}") from None


def _flat(path: Path, text: str) -> dict[str, Any]:
    values = parse_yaml(text)
    if not isinstance(values, dict):
        raise UserError(f"{path} must be the configuration of a run, got something else")
    return dict(_leaves("", values))


def _leaves(prefix: str, values: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        deeper = isinstance(value, dict)
        found += _leaves(f"{prefix}{key}.", value) if deeper else [(f"{prefix}{key}", value)]
    return found


def _described(file: Path) -> dict[str, Any]:
    try:
        found = read_object(file)
        if not isinstance(found.get("earlier_launches", []), list):
            raise DocumentError("earlier_launches must be a list")
    except DocumentError as error:
        raise UserError(
            f"{file} must be what a run wrote there: {error}; remove the file to go on"
        ) from None
    return found


def _environment(file: Path, digest: str) -> str:
    now = {"config_digest": digest, **describe_environment(), "earlier_launches": []}
    if file.exists():
        before = _described(file)
        now["earlier_launches"] = [*before.pop("earlier_launches", []), before]
    return json.dumps(now, indent=2, ensure_ascii=False) + "\n"


PACKAGES = (
    "online-aug", "accelerate", "deepspeed", "diffusers", "lmdb", "numpy", "peft", "pillow",
    "pydantic", "safetensors", "scikit-learn", "timm", "torch", "torchvision", "transformers",
    "triton", "xformers",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return the content of `environment.json`; takes under a second and touches no GPU."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "git_revision": git_revision(Path(__file__)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": usable_cores(),
        "gpus": gpu_names(),
    }


def git_revision(file: Path) -> str | None:
    """Return the commit of a tracked file, with `-dirty` if tracked files differ from it.

    None if the file is not tracked: an installed package may lie in the work tree of another.
    """
    if _output("git", "-C", str(file.parent), "ls-files", "--error-unmatch", file.name) is None:
        return None
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _output("git", "-C", str(file.parent), *describe)


def gpu_names() -> list[str]:
    """Return the names of this machine's NVIDIA GPUs, including those hidden from this process.

    The driver's own tool is asked: CUDA, once initialised here, would keep memory on a device and
    could not be used in a forked process.
    """
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines() if names else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()
