"""Start one rank for each training device with DeepSpeed's launcher, and own what it starts.

On its own that launcher turns signals into kills, hides which rank failed first, and leaves
processes behind. Here it is a child in a session of its own: signals are passed on to the ranks,
the status of the first that fails comes back, and nothing is left. Each rank starts in `rank.py`.
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
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from online_aug import processes
from online_aug.distributed.identity import (
    LAUNCH_FOLDER,
    LAUNCHER_PID,
    PARENT_PID,
    VISIBLE_DEVICES,
    identify,
)

FIRST_FAILURE = "first_failure"
"""The file in `LAUNCH_FOLDER` that holds the status of the first rank to fail."""
_LOWEST_SIGNAL_STATUS = 256 - 64


def needs_launcher(devices: Sequence[str]) -> bool:
    """Return whether this process should call `launch`: several devices, and no rank itself."""
    return len(devices) > 1 and not identify().is_launched


def launch(program: Path | str, argv: Sequence[str], devices: Sequence[str]) -> int:
    """Run a program in one rank for each device and wait for all; main thread only.

    SIGINT, SIGTERM and SIGHUP are passed on to the ranks, which decide when to stop; the third
    one kills. If this process is killed, the kernel kills launcher and ranks.

    Args:
        program: A script, or the name of a module to run as the main program.
        argv: The arguments of the program.
        devices: All GPUs or all `cpu`; their order is that of the ranks.

    Returns:
        0 if all ranks succeeded, else the status of the first that failed: its exit status, or
        128 plus the signal that killed it.
    """
    others = {child.pid for child in psutil.Process().children()}
    with tempfile.TemporaryDirectory(prefix="online_aug_") as folder:
        processes.adopt_orphans(True)
        # A session of its own: Ctrl-C in a terminal then reaches this process alone.
        launcher = subprocess.Popen(
            _command(str(program), argv, len(devices)),
            env=_environment(devices, folder),
            start_new_session=True,
        )
        kill = partial(os.kill, launcher.pid, signal.SIGKILL)
        try:
            with processes.passing_on(partial(_send, launcher, len(devices)), kill) as received:
                _wait(launcher)
        finally:
            # An exception may have left it alive. Popen.kill would reap it.
            kill()
            _wait(launcher)
            processes.end_descendants(others | {launcher.pid})
            processes.adopt_orphans(False)
        return _status(launcher.wait(), Path(folder), received)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(program: str, argv: Sequence[str], ranks: int) -> list[str]:
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [*range(ranks)]}).encode()).decode()
    return [
        *(sys.executable, "-P", "-m", "online_aug.distributed.launcher"),
        *(f"--world_info={world}", "--node_rank=0"),
        *("--master_addr=127.0.0.1", f"--master_port={free_port()}"),
        *("--log_level=critical", "--no_local_rank", "--module", "online_aug.distributed.rank"),
        *(program, *argv),
    ]


def _environment(devices: Sequence[str], folder: str) -> dict[str, str]:
    environment = dict(os.environ) | processes.packages_first()
    environment[LAUNCHER_PID] = str(os.getpid())
    environment[LAUNCH_FOLDER] = folder
    # DeepSpeed's launcher renumbers GPUs; the ranks undo that, so that all processes count alike.
    environment.pop(VISIBLE_DEVICES, None)
    if "CUDA_VISIBLE_DEVICES" in environment:
        environment[VISIBLE_DEVICES] = environment["CUDA_VISIBLE_DEVICES"]
    environment["DS_ACCELERATOR"] = devices[0].split(":")[0]
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name may not resolve
    return environment


def _send(launcher: subprocess.Popen[bytes], ranks: int, number: int) -> None:
    try:
        found = psutil.Process(launcher.pid).children()
    except psutil.NoSuchProcess:
        return
    if len(found) < ranks:
        os.kill(launcher.pid, signal.SIGTERM)  # still starting: there is nothing to save yet
        return
    for rank in found:
        try:
            rank.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _wait(launcher: subprocess.Popen[bytes]) -> None:
    # It is not reaped yet: its process id stays ours while the rest is cleared away.
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)


def _status(returncode: int, folder: Path, received: list[int]) -> int:
    noted = folder / FIRST_FAILURE
    if returncode < 0 and not received:
        return 128 - returncode  # the launcher itself was killed
    if returncode >= _LOWEST_SIGNAL_STATUS and not noted.exists():
        return 128 + 256 - returncode  # it exits with minus the signal that ended a rank
    if noted.exists():
        return int(noted.read_text())
    return 128 + received[0] if returncode and received else abs(returncode)


def _be_the_launcher() -> None:
    processes.die_with_parent(signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHER_PID]):
        sys.exit(1)  # the parent died before the request
    os.environ[PARENT_PID] = str(os.getpid())
    # Ranks inherit this: a signal that comes while Python starts waits until they can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    runpy.run_module("deepspeed.launcher.launch", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _be_the_launcher()
