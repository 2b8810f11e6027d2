"""Commands of ours as processes that start at once: forks of a warm one, see `warm_server`."""

import json
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]


def cores():
    """One processor core for each worker of pytest-xdist, so that they do not get into the way."""
    usable = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw")[2:]
    return [usable[int(worker) % len(usable)]] if worker else usable


class WarmProcess:
    """A forked command, with the interface of `subprocess.Popen` that tests use."""

    def __init__(self, server, pid, folder):
        self.pid, self.returncode = pid, None
        self._server, self._folder = server, folder

    def poll(self):
        """The exit status of a process that has ended, else None."""
        self.returncode = self._server.statuses.get(self.pid)
        return self.returncode

    def wait(self, timeout=None):
        with self._server.changed:
            if not self._server.changed.wait_for(lambda: self.poll() is not None, timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end of the process; return its output and errors."""
        self.wait(timeout)
        out, err = ((Path(self._folder.name) / name).read_text() for name in ("out", "err"))
        return out, err

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)


class WarmServer:
    """The process whose forks run the commands."""

    def __init__(self, env):
        self.statuses, self.changed = {}, threading.Condition()
        self._pids, self._lock = [], threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "warm_server.py"],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, command, env):
        """Start a command; it runs in the root of the repository."""
        folder = TemporaryDirectory(prefix="warm_")
        request = {
            "command": [str(word) for word in command],
            "env": env,
            "cores": cores(),
            "out": f"{folder.name}/out",
            "err": f"{folder.name}/err",
        }
        with self._lock, self.changed:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            assert self.changed.wait_for(lambda: self._pids, 120), "the warm process is gone"
            return WarmProcess(self, self._pids.pop(), folder)

    def _listen(self):
        for line in self._process.stdout:
            told = json.loads(line)
            with self.changed:
                if "pid" in told:
                    self._pids.append(told["pid"])
                else:
                    self.statuses[told["ended"]] = told["status"]
                self.changed.notify_all()


@cache
def warm_server():
    """The one of this test process; it ends with it, as its standard input does."""
    from tiny_runs import environment

    return WarmServer(environment())
