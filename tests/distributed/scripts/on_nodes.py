"""Stands in for train.py: `on_nodes.py FOLDER BEHAVIOUR` on two machines, one rank on each."""

import os
import sys
from pathlib import Path

from online_aug.distributed.cluster import obey, reach, run_on_nodes
from online_aug.distributed.launcher import is_launched, launch, this_node

BEHAVIOUR = Path(__file__).parent / "rank_behaviour.py"
HOSTS = {"localhost": 1, "node-b": 1}

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if this_node() is None:
        sys.exit(run_on_nodes(arguments, HOSTS, reach(HOSTS)))
    assert not is_launched()
    obey()
    (Path(arguments[0]) / f"node{this_node().number}").write_text(str(os.getpid()))
    sys.exit(launch(arguments, ["cpu"], script=BEHAVIOUR))
