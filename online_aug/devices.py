"""Who computes where: the plan that is printed before anything starts."""

import os
from dataclasses import dataclass

import torch

from online_aug.config import DevicesConfig
from online_aug.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """Training devices, one rank each, and the generator's device."""

    train: tuple[str, ...]
    """Empty where images are made ahead of training."""
    generate: str | None
    """None serves the cache only."""
    train_threads: int
    """CPU threads of each rank."""
    generate_threads: int

    def __str__(self) -> str:
        made = f"generate on {self.generate}" if self.generate else "no generation (cache only)"
        if not self.train:
            return f"{made} ({self.generate_threads} threads)"
        return f"train on {', '.join(self.train)} ({self.train_threads} threads each); {made}"


def plan_devices(
    devices: DevicesConfig,
    cores: int | None = None,
    *,
    generates: bool = True,
    trains: bool = True,
) -> DevicePlan:
    """The plan for this node.

    `auto`: two or more GPUs, the last one generates; one GPU is shared; without a GPU both sides
    run on the CPU and divide the cores. Where nothing is generated, all GPUs train; where nothing
    is trained, the generator has all cores.

    Args:
        devices: What the person asks for.
        cores: Of this machine; counted if None.
        generates: False where the run serves the cache only, whatever `devices.generate` says.
        trains: False where images are made and nothing else.

    Raises:
        UserError: If a device does not exist here.
    """
    if not generates:
        devices = devices.model_copy(update={"generate": "none"})
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    train = _training(devices, gpus) if trains else ()
    generate = _generating(devices, gpus)
    cores = cores or len(os.sched_getaffinity(0))
    parts = len(train) + (generate == "cpu")
    train_threads = max(1, cores // max(1, parts))
    return DevicePlan(
        train=train,
        generate=generate,
        train_threads=train_threads,
        generate_threads=max(1, cores - len(train) * train_threads),
    )


def _training(devices: DevicesConfig, gpus: list[str]) -> tuple[str, ...]:
    if devices.train != "auto":
        chosen = tuple(_checked("devices.train", name, gpus) for name in devices.train)
        if len({name.split(":")[0] for name in chosen}) > 1:
            raise UserError(f"devices.train must be all GPUs or all cpu, got {', '.join(chosen)}")
        return chosen
    if not gpus:
        return ("cpu",)
    if len(gpus) > 1 and devices.generate == "auto":
        return tuple(gpus[:-1])
    return tuple(name for name in gpus if name != devices.generate) or (gpus[0],)


def _generating(devices: DevicesConfig, gpus: list[str]) -> str | None:
    if devices.generate == "none":
        return None
    if devices.generate == "auto":
        return gpus[-1] if gpus else "cpu"
    return _checked("devices.generate", devices.generate, gpus)


def _checked(key: str, name: str, gpus: list[str]) -> str:
    if name == "cpu" or name in gpus:
        return name
    allowed = ", ".join(["cpu", *gpus])
    raise UserError(f"{key} must be a device of this machine ({allowed}), got {name!r}")
