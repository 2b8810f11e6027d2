"""Stands in for train.py: `launch.py SCRIPT RANKS ARGUMENTS...` exits with the status."""

import sys
from pathlib import Path

from online_aug.distributed.launcher import launch

if __name__ == "__main__":
    script, ranks, *arguments = sys.argv[1:]
    sys.exit(launch(Path(script).resolve(), arguments, ["cpu"] * int(ranks)))
