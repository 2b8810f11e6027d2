"""What a run was made with: versions, revision, machine; nothing that names the machine."""

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "online-aug", "accelerate", "deepspeed", "diffusers", "lmdb", "numpy", "peft", "pillow",
    "pydantic", "safetensors", "scikit-learn", "timm", "torch", "torchvision", "transformers",
    "triton", "xformers",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """The content of `environment.json`; takes well under a second and touches no GPU."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "git_revision": git_revision(Path(__file__)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": gpu_names(),
    }


def git_revision(file: Path) -> str | None:
    """The commit `file` belongs to, with `-dirty` where tracked files differ from it.

    None where the file is not tracked: an installed package may lie inside another's work tree.
    """
    if _output("git", "-C", str(file.parent), "ls-files", "--error-unmatch", file.name) is None:
        return None
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _output("git", "-C", str(file.parent), *describe)


def gpu_names() -> list[str]:
    """The names of this machine's NVIDIA GPUs, also those hidden from this process.

    Asked of the driver's own tool: CUDA, once initialised here, would keep memory on a device and
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
