"""Writes what a rank of DeepSpeed's launcher sees and plans; the GPUs are those it is shown.

The machine has none: their number is what CUDA would count.
"""

import json
import os
import sys
from pathlib import Path

import torch

from online_aug.config.sections import DevicesConfig
from online_aug.distributed.devices import plan_devices
from online_aug.distributed.identity import identify
from online_aug.distributed.world import rank_device


def main(folder):
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    torch.cuda.device_count = lambda: len(visible.split(","))
    chosen = DevicesConfig(share=0.25)
    plan = plan_devices(chosen, 8, ranks=identify().local_world_size)
    said = {"visible": visible, "device": rank_device(plan.train), "plan": str(plan)}
    (folder / os.environ["RANK"]).write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
