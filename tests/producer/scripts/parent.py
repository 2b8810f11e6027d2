"""A trainer that starts a child of a given behaviour and then sleeps."""

import os
import sys
import time
from pathlib import Path

from online_aug.producer.supervisor import Supervisor


def main(script, behaviour, folder):
    Supervisor([script, behaviour, folder], Path(folder) / "log", {}).start()
    if os.fork() == 0:  # a loader's worker, which inherits the trainer's end of the pipe
        time.sleep(20)
        os._exit(0)
    time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
