"""A rank that meets a bad batch: `skip_steps.py FOLDER STAGE` leaves each rank's losses there."""

import json
import sys
from pathlib import Path

import torch
from classifier_samples import train_and_skip

from online_aug.distributed.world import end_distributed, rank_device, start_distributed

if __name__ == "__main__":
    torch.set_num_threads(1)
    place, stage = Path(sys.argv[1]), int(sys.argv[2])
    ranks = start_distributed(rank_device(["cpu", "cpu"]))
    losses = train_and_skip(ranks, stage)
    (place / f"losses{ranks.rank}.json").write_text(json.dumps(losses))
    end_distributed()
