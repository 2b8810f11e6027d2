"""Writes what a rank of DeepSpeed's launcher sees and plans; the GPUs are those it is shown.

The machine has none: their number is what CUDA would count.
"""

import json
import os
import sys
from pathlib import Path

import torch

from online_aug.config import DevicesConfig
from online_aug.devices import plan_devices
from online_aug.training.distributed import rank_device
from online_aug.training.launched import layout_of


def main(folder):
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    torch.cuda.device_count = lambda: len(visible.split(","))
    chosen = DevicesConfig(share=0.25)
    plan = plan_devices(chosen, 8, ranks=layout_of(chosen).here)
    said = {"visible": visible, "device": rank_device(plan.train), "plan": str(plan)}
    (folder / os.environ["RANK"]).write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
