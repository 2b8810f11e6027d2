"""Serve commands of ours as forks of one process that has imported what takes seconds to import.

Requests and answers are JSON lines on standard input and output. A request names the command, its
environment, its processor cores and the files that get its output; the answer is its process id,
and another line follows when it has ended.

A fork is a process like any other: it has an id and signals of its own and shows its own command
line. Only its imports were done before.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import sys
import threading
import traceback
from importlib import import_module

import setproctitle

IMPORTED = (
    "timm",
    "deepspeed",
    "torch.utils.tensorboard",
    "accelerate.tracking",
    "online_aug.cli.train",
    "online_aug.finetuning.run",
    "online_aug.training.build_loader",
    "online_aug.training.trainer",
)


def serve(answers):
    """Answer requests until standard input ends; return in each fork, with its request."""
    running, unread = set(), b""
    while True:
        asked, _, _ = select.select([0], [], [], 0.01 if running else None)
        if asked:
            content = os.read(0, 2**20)
            if not content:
                os._exit(0)
            *lines, unread = (unread + content).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    os.close(answers)
                    return json.loads(line)
                running.add(pid)
                tell(answers, {"pid": pid})
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                tell(answers, {"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def tell(answers, message):
    os.write(answers, json.dumps(message).encode() + b"\n")


def become(request):
    """Look like a process that was started with this command."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_CREAT | os.O_WRONLY),
        (2, request["err"], os.O_CREAT | os.O_WRONLY),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.sched_setaffinity(0, request["cores"])
    setproctitle.setproctitle(" ".join([sys.executable, *request["command"]]))


def run(command):
    """Run `-m MODULE ...` or `SCRIPT ...` as Python does; return the exit status."""
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status):
    """End as Python does, without taking the imported modules apart, which takes long."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import prints is no answer
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # what was imported is never looked at again, and stays shared
    request = serve(answers)
    become(request)
    leave(run(request["command"]))
