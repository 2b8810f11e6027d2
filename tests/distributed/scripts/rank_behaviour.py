"""A rank that behaves as told, without torch: `rank_behaviour.py FOLDER BEHAVIOUR`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from online_aug.processes import STOPPING, Interrupt


def wait_to_be_interrupted(folder, rank):
    with Interrupt() as interrupt:
        (folder / f"ready{rank}").write_text(str(os.getpid()))
        while interrupt.received is None:
            time.sleep(0.02)
    time.sleep(0.3)  # a checkpoint takes a while
    (folder / f"saved{rank}").touch()
    sys.exit(interrupt.exit_status)


def hear_nothing(folder, rank):
    """As a rank in the middle of a long call into C does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    (folder / f"ready{rank}").write_text(str(os.getpid()))


def start_a_grandchild(folder, rank):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                             start_new_session=True)  # fmt: skip
    (folder / f"grandchild{rank}").write_text(str(child.pid))


def note_environment(folder, rank):
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "DS_ACCELERATOR")
    seen = [os.environ[key] for key in (*keys, "CUDA_VISIBLE_DEVICES")]
    (folder / f"seen{rank}").write_text(" ".join(seen))


if __name__ == "__main__":
    place, behaviour = Path(sys.argv[1]), sys.argv[2]
    number = int(os.environ["RANK"])
    if behaviour == "fail":
        note_environment(place, number)
        if number == 1:
            while not (place / "seen0").exists():
                time.sleep(0.02)
            sys.exit(5)
    if behaviour == "killed" and number == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as train.py does
    if behaviour == "killed" and number == 0:
        start_a_grandchild(place, number)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "interrupted":
        start_a_grandchild(place, number)
        wait_to_be_interrupted(place, number)
    if behaviour == "deaf":
        hear_nothing(place, number)
    time.sleep(600)
