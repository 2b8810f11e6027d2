"""One rank that fails and one that waits for it: `fail_together.py FOLDER WHO [HOW]`."""

import os
import signal
import sys
from pathlib import Path

from online_aug.cli.main import run_main
from online_aug.distributed.world import barrier, failing_together, start_distributed
from online_aug.errors import UserError


def main(argv):
    folder, who, how = argv
    world = start_distributed("cpu")
    with failing_together(world, Path(folder)):
        barrier(world)
        if world.rank == int(who) and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if world.rank == int(who):
            raise UserError("key must be a value, got none")
        barrier(world)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    run_main(main)
