"""The device plan of a node: which devices train, which generate; one generator a GPU.

Two generation processes on one GPU would halve each other's speed and may not fit.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from filelock import Timeout

from online_aug.config.sections import DevicesConfig
from online_aug.cores import usable_cores, wished_threads
from online_aug.errors import UserError
from online_aug.files import alone, lock_of_user


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """The training devices, one rank each, and the generating devices, one process each."""

    train: tuple[str, ...]
    """Empty if images are made ahead of training."""
    generate: tuple[str, ...]
    """Empty if nothing is generated."""
    train_threads: int
    """Number of CPU threads of each rank."""
    generate_threads: int
    """Number of CPU threads of each generation process."""
    share: float = 0.0
    """Share of a shared GPU's speed that training keeps, [0, 1)."""

    @property
    def generator(self) -> str:
        """The device that the plan names in its requests, even if nothing is generated now."""
        return (self.generate or self.train)[0]

    @property
    def finetune(self) -> tuple[str, ...]:
        """The devices that fine-tune the generator before training: every GPU of the run."""
        if self.generator == "cpu":
            return self.generate or ("cpu",)
        return tuple(dict.fromkeys(d for d in (*self.generate, *self.train) if d != "cpu"))

    def is_shared(self, device: str) -> bool:
        """Return whether a device is a GPU that both trains and generates."""
        return device != "cpu" and device in self.train and device in self.generate

    def __str__(self) -> str:
        made = "no generator"
        if self.generate:
            made = f"generate on {', '.join(map(self._described, self.generate))}"
        if not self.train:
            return f"{made} ({self.generate_threads} threads)"
        return f"train on {', '.join(self.train)} ({self.train_threads} threads each); {made}"

    def _described(self, device: str) -> str:
        if not self.is_shared(device):
            return device
        return f"{device} (shared, {self.share:.0%} left to training)"


def plan_devices(
    devices: DevicesConfig,
    cores: int | None = None,
    *,
    generates: bool = True,
    trains: bool = True,
    ranks: int | None = None,
    number: int | None = None,
) -> DevicePlan:
    """Plan the devices of this node.

    `auto`: of two or more GPUs the last one generates; a single GPU is shared; without a GPU
    training and generation divide the cores of the CPU. If nothing is generated, all GPUs train;
    if nothing is trained, the generator has all cores.

    Args:
        devices: The section of the configuration.
        cores: Number of cores to divide; None counts those that may be used, unless the user has
            set the threads of each process by OMP_NUM_THREADS.
        generates: False if the run makes no images, whatever `devices.generate` says.
        trains: False if images are made and nothing is trained.
        ranks: Number of ranks that a launcher has started on this node: rank n trains on GPU n, or
            all on the CPU.
        number: Number of this process among those of this machine that make images, if a launcher
            has started several: number n generates on GPU n.

    Raises:
        UserError: If a device does not exist here.
    """
    if not generates:
        devices = devices.model_copy(update={"generate": "none"})
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    train = _training(devices, gpus) if trains else ()
    if train and ranks is not None:
        train = _launched(train, gpus, ranks)
    generate = _generating(devices, gpus, number)
    wish = wished_threads() if cores is None else None
    cores = cores or usable_cores()
    parts = len(train) + generate.count("cpu")
    train_threads = wish or max(1, cores // max(1, parts))
    return DevicePlan(
        train=train,
        generate=generate,
        train_threads=train_threads,
        generate_threads=wish
        or max(1, (cores - len(train) * train_threads) // max(1, len(generate))),
        share=devices.share,
    )


def check_unused(devices: Sequence[str]) -> None:
    """Refuse devices on which another run generates.

    Raises:
        UserError: If another run generates on one of them.
    """
    for device in devices:
        with sole_generator(device):
            pass


def _training(devices: DevicesConfig, gpus: list[str]) -> tuple[str, ...]:
    if devices.train != "auto":
        return _chosen("devices.train", devices.train, gpus)
    if not gpus:
        return ("cpu",)
    if len(gpus) > 1 and devices.generate == "auto":
        return tuple(gpus[:-1])
    return tuple(name for name in gpus if name not in devices.generate) or (gpus[0],)


def _launched(planned: tuple[str, ...], gpus: list[str], ranks: int) -> tuple[str, ...]:
    if planned[0] == "cpu":
        return ("cpu",) * ranks
    if ranks > len(gpus):
        raise UserError(
            f"a launcher must start at most {len(gpus)} ranks on this node, one for each GPU it "
            f"shows them, got {ranks}"
        )
    return tuple(gpus[:ranks])


def _generating(
    devices: DevicesConfig, gpus: list[str], number: int | None = None
) -> tuple[str, ...]:
    if devices.generate == "none":
        return ()
    if devices.generate == "auto" and number is not None and len(gpus) > 1:
        if number >= len(gpus):
            raise UserError(
                f"a launcher must start at most {len(gpus)} processes on this machine, one for "
                f"each GPU it shows them, got number {number}, counted from 0"
            )
        return (gpus[number],)
    if devices.generate == "auto":
        return (gpus[-1] if gpus else "cpu",)
    return _chosen("devices.generate", devices.generate, gpus)


def _chosen(key: str, names: tuple[str, ...], gpus: list[str]) -> tuple[str, ...]:
    chosen = tuple(_checked(key, name, gpus) for name in names)
    if len({name.split(":")[0] for name in chosen}) > 1:
        raise UserError(f"{key} must be all GPUs or all cpu, got {', '.join(chosen)}")
    return chosen


def _checked(key: str, name: str, gpus: list[str]) -> str:
    if name == "cpu" or name in gpus:
        return name
    allowed = ", ".join(["cpu", *gpus])
    raise UserError(f"{key} must be a device of this machine ({allowed}), got {name!r}")


PATIENCE_S = 10.0
"""How long to wait for a GPU; a generator whose trainer was killed ends within 5 s."""


@contextmanager
def sole_generator(device: str) -> Iterator[None]:
    """Keep other processes of this user from generating on a GPU; a CPU may have several.

    Raises:
        UserError: If another process generates on this GPU and does not end soon.
    """
    with ExitStack() as stack:
        if device != "cpu":
            gpu = gpu_id(device)
            try:
                stack.enter_context(alone(lock_of_user(gpu), PATIENCE_S))
            except Timeout:
                raise UserError(
                    "devices.generate must be a GPU on which no other process generates, got "
                    f"{device} ({gpu}); name another, or none, or wait for the other run"
                ) from None
        yield


def gpu_id(device: str) -> str:
    """Return the hardware id of a GPU, which does not depend on how this process numbers GPUs."""
    return str(torch.cuda.get_device_properties(device).uuid)
