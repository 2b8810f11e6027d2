"""SLURM's commands on this machine: every task is a process here, told what SLURM tells a task."""

import os
import sys
from pathlib import Path

SRUN = """\
import os, signal, subprocess, sys

words = sys.argv[1:]
while words and words[0].startswith("--"):
    words.pop(0)
nodes = int(os.environ["SLURM_NNODES"])
tasks = []
for node in range(nodes):
    told = {"SLURM_NODEID": node, "SLURM_PROCID": node, "SLURM_LOCALID": 0, "SLURM_NTASKS": nodes}
    told["SLURM_STEP_NUM_TASKS"] = nodes
    own = {"TMPDIR": os.path.join(os.environ["NODE_DISKS"], f"node{node}")}
    os.makedirs(own["TMPDIR"], exist_ok=True)
    environment = os.environ | own | {name: str(value) for name, value in told.items()}
    tasks.append(subprocess.Popen(words, env=environment, start_new_session=True))
statuses = [task.wait() for task in tasks]
sys.exit(max(128 - status if status < 0 else status for status in statuses))
"""
"""A task a node, each with a disk of its own; the status is the largest, as srun's is."""
SCONTROL = """\
import sys

assert sys.argv[1:] == ["show", "hostnames", "here[1-2]"], sys.argv
print("127.0.0.1\\n127.0.0.1")
"""


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; return the environment of a job that finds them first."""
    tools = folder / "slurm"
    tools.mkdir()
    for name, code in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(f"#!{sys.executable}\n{code}")
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "here[1-2]"}
    return job | {"PATH": path, "NODE_DISKS": str(folder / "disks"), "USER": "me"}
