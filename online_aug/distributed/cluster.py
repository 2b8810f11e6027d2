"""A run on the machines of a hostfile: the program on each, started over ssh and owned from here.

Each machine's process reads its orders from its standard input: a signal's number a line; the end
of the input, however it comes, means that nobody waits for it any more.

DeepSpeed's hostfile: the machines of a run, and how many ranks train on each.

How many ranks a run has and which process this is, by the launcher above or the hostfile.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from online_aug.config.training import DevicesConfig
from online_aug.distributed.launcher import (
    NODE,
    PATIENCE,
    RECORD,
    Node,
    free_port,
    is_launched,
    passing_on,
    this_node,
)
from online_aug.errors import UserError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
FORWARDED = ("DS_", "GLOO_", "HF_", "NCCL_", "OMP_", "PYTHON", "TORCH", "UCX_")
"""Variables that other machines get too."""
_POLL_S = 0.2
_GRACE_S = 45.0
"""Between the end of its orders and the end of a machine's process."""
_UNREACHABLE = 255
"""Exit status of ssh itself."""


def run_on_nodes(argv: Sequence[str], hosts: Mapping[str, int], address: str) -> int:
    """Run this program on every machine and wait; main thread only.

    SIGINT and SIGTERM are passed on to all ranks, which decide when to stop; the third one kills.
    The first machine whose ranks fail ends those of the others.

    Args:
        argv: Arguments of the program.
        hosts: Ranks by machine; the first is this one.
        address: Of this machine, as `reach` found it.

    Returns:
        0 if all succeeded, else the status of the first that failed.
    """
    slots, port = tuple(hosts.values()), free_port()
    places = [Node(number, slots, address, port) for number in range(len(hosts))]
    processes = [
        _start(name, _program(argv, place), is_here=place.number == 0)
        for name, place in zip(hosts, places, strict=True)
    ]
    try:
        with passing_on(partial(_order, processes), partial(_close, processes)) as received:
            return _wait(processes, received)
    finally:
        _end(processes)


def reach(hosts: Mapping[str, int]) -> str:
    """The address by which the other machines see this one; starts and writes nothing.

    Raises:
        UserError: If the first is another machine than this, or one of the others is not reached
            by ssh without a password, or lacks this folder and this Python.
    """
    here, *others = hosts
    if _is_elsewhere(here):
        raise UserError(
            f"devices.hostfile must name this machine ({socket.gethostname()}) first, got {here}: "
            "start the run there"
        )
    if not others:
        return "127.0.0.1"
    with ThreadPoolExecutor(len(others)) as threads:
        return next(iter(list(threads.map(_seen_from, others))))


def obey() -> None:
    """Take orders from standard input for the rest of this process."""
    threading.Thread(target=_obey, daemon=True).start()


def _obey() -> None:
    for line in sys.stdin:
        os.kill(os.getpid(), int(line))
    for _ in range(PATIENCE + 1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_POLL_S)
    time.sleep(_GRACE_S / 2)
    os._exit(1)  # its ranks end with it


def _seen_from(host: str) -> str:
    wanted = f"test -x {shlex.quote(sys.executable)} && test -f {shlex.quote(_script())}"
    question = f"cd {shlex.quote(str(Path.cwd()))} && {wanted} && echo $SSH_CONNECTION"
    try:
        asked = subprocess.run(
            [*SSH, host, question],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("devices.hostfile must be null where there is no ssh, got one") from None
    said = " ".join(asked.stderr.split())
    if asked.returncode == _UNREACHABLE:
        raise UserError(
            "devices.hostfile must name machines that ssh reaches without a password, "
            f"got {host}: {said}"
        )
    address = asked.stdout.split()[:1]
    if asked.returncode or not address:
        raise UserError(
            f"devices.hostfile must name machines with {Path.cwd()}, {_script()} and "
            f"{sys.executable} on them, {host} has not: {said or 'something is missing'}"
        )
    return address[0]


def _is_elsewhere(host: str) -> bool:
    """The name is known, and the address is not one of this machine's."""
    with suppress(socket.gaierror):
        family, _, _, _, address = socket.getaddrinfo(host.rpartition("@")[2], 0)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(address)
            except OSError:
                return True
    return False


def _script() -> str:
    return str(Path(sys.argv[0]).resolve())


def _program(argv: Sequence[str], place: Node) -> str:
    forwarded = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(FORWARDED)]
    words = ["env", *forwarded, f"{NODE}={place.to_text()}", sys.executable, _script(), *argv]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"


def _start(host: str, program: str, *, is_here: bool) -> subprocess.Popen[str]:
    command = ["sh", "-c", program] if is_here else [*SSH, host, program]
    # A session of its own: a terminal's Ctrl-C then comes to this process alone.
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)


def _wait(processes: Sequence[subprocess.Popen[str]], received: Sequence[int]) -> int:
    """Status of the first that failed, 0 if none did; those that stop as asked wait for others."""
    while True:
        found = [process.poll() for process in processes]
        statuses = [status if status is None or status >= 0 else 128 - status for status in found]
        stopped = [128 + number for number in received]
        failed = [status for status in statuses if status and status not in stopped]
        if failed or None not in statuses:
            return next(iter([*failed, *filter(None, statuses)]), 0)
        time.sleep(_POLL_S)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    _close(processes)
    until = time.monotonic() + _GRACE_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()
        process.wait()


def _order(processes: Sequence[subprocess.Popen[str]], number: int) -> None:
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # it has ended
            process.stdin.write(f"{number}\n")
            process.stdin.flush()


def _close(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()


_LINE = re.compile(r"(?P<name>\w[\w.@:-]*)\s+slots=(?P<slots>[1-9]\d{0,5})(\s+#.*)?")


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by machine, in the order of the file, which is that of the nodes.

    Raises:
        UserError: If the file cannot be read, a line is no machine, or a machine is named twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"devices.hostfile must be a readable hostfile: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None or found["name"] in hosts:
            raise UserError(
                "devices.hostfile must name each machine once, in a line such as node-a slots=2, "
                f"got {text!r} in line {number} of {path}"
            )
        hosts[found["name"]] = int(found["slots"])
    if not hosts:
        raise UserError(
            "devices.hostfile must name at least one machine, in a line such as node-a slots=2, "
            f"got none in {path}"
        )
    return hosts


_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""Ranks of this node, as torchrun and DeepSpeed say it."""


@dataclass(frozen=True)
class Layout:
    """The ranks of a run as far as somebody else than `devices.train` decides them."""

    here: int | None = None
    """On this node; None leaves it to `devices.train`."""
    ranks: int | None = None
    """Of all nodes; None if they are those of this one."""
    hosts: Mapping[str, int] | None = None
    """Ranks by machine, where this process is to start the run on all of them."""


def layout_of(devices: DevicesConfig) -> Layout:
    """What a launcher above has started, or a hostfile asks for.

    Under a launcher that is not ours the hostfile is that launcher's business.

    Raises:
        UserError: If the hostfile is none.
    """
    node = this_node()
    if node is not None:
        return Layout(node.ranks, sum(node.slots))
    if is_launched():
        said = [os.environ[name] for name in _LOCAL_SIZES if name in os.environ]
        is_known = said and RECORD not in os.environ  # what ours starts is as planned
        return Layout(int(said[0]) if is_known else None, int(os.environ.get("WORLD_SIZE", 1)))
    if devices.hostfile is None:
        return Layout()
    hosts = read_hostfile(devices.hostfile)
    return Layout(next(iter(hosts.values())), sum(hosts.values()), hosts)


def is_first_process() -> bool:
    """The first rank; without a launcher above, the process of the first machine."""
    if is_launched():
        return os.environ.get("RANK", "0") == "0"
    node = this_node()
    return node is None or node.number == 0


def is_first_of_node() -> bool:
    """No launcher above, or the first rank that it started on this node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
