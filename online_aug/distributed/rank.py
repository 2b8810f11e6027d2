"""The entry of a rank: it ends with its launcher, and notes its status if it is the first to fail.

Nothing heavy is imported here, so that the rank is tied to its launcher before it does anything.
"""

import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

from online_aug import processes
from online_aug.distributed.identity import LAUNCH_FOLDER, PARENT_PID, VISIBLE_DEVICES
from online_aug.distributed.launcher import FIRST_FAILURE


def main() -> int:
    """Run the script or module that the arguments name as the main program; return its status."""
    processes.die_with_parent(signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT_PID]):
        return 1  # the launcher died before the request, and this process was adopted
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if VISIBLE_DEVICES in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE_DEVICES]
    sys.argv = sys.argv[1:]
    status = _run(sys.argv[0])
    if status not in (0, 128 + signal.SIGTERM):  # asked to end: not the first to fail
        _note(status)
    return status


def _run(program: str) -> int:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, processes.STOPPING)
        if os.sep in program:  # a script by its whole path
            sys.path[0] = str(Path(program).parent)
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _note(status: int) -> None:
    try:
        with (Path(os.environ[LAUNCH_FOLDER]) / FIRST_FAILURE).open("x") as file:
            file.write(str(status))
    except FileExistsError:
        return  # another rank failed before


if __name__ == "__main__":
    ended = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(ended)  # taking torch apart in the middle of a collective call ends in an abort
