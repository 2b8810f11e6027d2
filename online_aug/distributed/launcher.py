"""DeepSpeed's launcher, owned: signals reach the ranks, their status comes back, nothing is left.

On its own the launcher turns signals into kills, hides which rank failed first, and leaves
processes behind. Here it is a child in a session of its own, between this process and the ranks
(`rank.py`).

The place of this machine in a run on several, as the process that started the run says it.
"""

import base64
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from online_aug.distributed import processes

NODE = "ONLINE_AUG_NODE"
"""Set in what a run with a hostfile starts on each machine, and in the ranks below it."""


@dataclass(frozen=True)
class Node:
    """One of the machines, and where all ranks meet."""

    number: int
    """From 0, in the order of the hostfile."""
    slots: tuple[int, ...]
    """Ranks on each machine."""
    address: str
    """Of the first machine, as the others see it."""
    port: int

    @property
    def ranks(self) -> int:
        """On this machine."""
        return self.slots[self.number]

    def to_text(self) -> str:
        """As the environment holds it."""
        return json.dumps(asdict(self), separators=(",", ":"))


def this_node() -> Node | None:
    """The place of this machine; None in a run that no hostfile spread over several."""
    if NODE not in os.environ:
        return None
    said = json.loads(os.environ[NODE])
    return Node(**{**said, "slots": tuple(said["slots"])})


LAUNCHER_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What any launcher sets in a rank."""
LAUNCHER_PID = "ONLINE_AUG_LAUNCHER_PID"
RECORD = "ONLINE_AUG_LAUNCH"
"""Set in ranks: a folder in which the first that fails notes its status."""
VISIBLE_DEVICES = "ONLINE_AUG_VISIBLE_DEVICES"
FIRST_FAILURE = "first_failure"
PATIENCE = 2
"""Signals that are passed on; the next one ends everything."""

_LOWEST_SIGNAL_STATUS = 256 - 64


def is_launched() -> bool:
    """Whether this process is a rank that a launcher started, ours or another."""
    return "RANK" in os.environ or "LOCAL_RANK" in os.environ


def needs_launcher(devices: Sequence[str]) -> bool:
    """Whether this process should `launch`: several training devices, and not a rank itself."""
    return (len(devices) > 1 or this_node() is not None) and not is_launched()


def launch(
    argv: Sequence[str],
    devices: Sequence[str],
    *,
    script: Path | str | None = None,
    threads: int | None = None,
    node: Node | None = None,
) -> int:
    """Run a script in one rank for each device and wait; main thread only.

    On one of several machines these are the ranks of this one, which meet those of the others.
    SIGINT and SIGTERM are passed on to the ranks, which decide when to stop; the third one kills.

    Args:
        argv: Arguments of the script.
        devices: Of this machine, all GPUs or all `cpu`; their order is that of the ranks.
        script: What to run, a file or the name of a module; the running program if None.
        threads: CPU threads of each rank; the cores divided by the ranks if None.
        node: The place of this machine among several; that in the run if None.

    Returns:
        0 if all ranks succeeded, else the status of the first that failed: its exit status, or
        128 plus the signal that killed it.
    """
    program = script if isinstance(script, str) else str((script or Path(sys.argv[0])).resolve())
    others = {child.pid for child in psutil.Process().children()}
    node = node or this_node() or only_node(len(devices))
    with tempfile.TemporaryDirectory(prefix="online_aug_") as record:
        environment = _environment(devices, threads, record)
        if len(node.slots) == 1:  # the name of the machine may not resolve
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        processes.adopt_orphans(True)
        # A session of its own: a terminal's Ctrl-C then comes to this process alone.
        process = subprocess.Popen(
            _command(program, argv, node), env=environment, start_new_session=True
        )
        kill = partial(os.kill, process.pid, signal.SIGKILL)
        try:
            with passing_on(partial(_send, process, len(devices)), kill) as received:
                _wait(process)
        finally:
            # Nothing to the dead; an exception may have left it alive. Popen.kill would reap it.
            kill()
            _wait(process)
            processes.end_descendants(others | {process.pid})
            processes.adopt_orphans(False)
        return _status(process.wait(), Path(record), received)


def _wait(process: subprocess.Popen[bytes]) -> None:
    # Not reaped yet: its process id stays ours while the rest is cleared away.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _command(program: str, argv: Sequence[str], node: Node) -> list[str]:
    ranks = {f"node{number}": [*range(slots)] for number, slots in enumerate(node.slots)}
    world = base64.urlsafe_b64encode(json.dumps(ranks).encode()).decode()
    return [
        *(sys.executable, "-m", "online_aug.distributed.launcher"),
        *(f"--world_info={world}", f"--node_rank={node.number}"),
        *(f"--master_addr={node.address}", f"--master_port={node.port}"),
        *("--log_level=critical", "--no_local_rank", "--module", "online_aug.distributed.rank"),
        *(program, *argv),
    ]


def _environment(devices: Sequence[str], threads: int | None, record: str) -> dict[str, str]:
    environment = dict(os.environ)
    packages = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, packages))
    environment[LAUNCHER_PID] = str(os.getpid())
    environment[RECORD] = record
    # The launcher renumbers GPUs; the ranks undo that, so that all processes count alike.
    environment.pop(VISIBLE_DEVICES, None)
    if "CUDA_VISIBLE_DEVICES" in environment:
        environment[VISIBLE_DEVICES] = environment["CUDA_VISIBLE_DEVICES"]
    environment["DS_ACCELERATOR"] = devices[0].split(":")[0]
    share = threads or max(1, len(os.sched_getaffinity(0)) // len(devices))
    environment.setdefault("OMP_NUM_THREADS", str(share))
    return environment


def only_node(ranks: int) -> Node:
    """This machine alone."""
    return Node(0, (ranks,), "127.0.0.1", free_port())


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def passing_on(send: Callable[[int], None], kill: Callable[[], None]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on while entered, PATIENCE of them; the next ones kill.

    Main thread only.

    Args:
        send: Takes the number of a signal.
        kill: What another one leads to.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > PATIENCE:
            kill()
        else:
            send(number)

    watched = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in watched]
    try:
        yield received
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


def _send(process: subprocess.Popen[bytes], ranks: int, number: int) -> None:
    try:
        found = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return
    if len(found) < ranks:
        os.kill(process.pid, signal.SIGTERM)  # still starting: nothing to save yet
        return
    for rank in found:
        try:
            rank.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _status(returncode: int, record: Path, received: list[int]) -> int:
    noted = record / FIRST_FAILURE
    if returncode < 0 and not received:
        return 128 - returncode  # the launcher itself was killed
    if returncode >= _LOWEST_SIGNAL_STATUS and not noted.exists():
        return 128 + 256 - returncode  # it exits with minus the signal that ended a rank
    if noted.exists():
        return int(noted.read_text())
    return 128 + received[0] if returncode and received else abs(returncode)


def _be_the_launcher() -> None:
    processes.die_with_parent(signal.SIGTERM)
    if os.getppid() != int(os.environ[LAUNCHER_PID]):
        sys.exit(1)  # it died before the request
    runpy.run_module("deepspeed.launcher.launch", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _be_the_launcher()
