"""A rank that trains with divided state: `save_divided.py FOLDER STAGE` leaves losses there."""

import json
import sys
from pathlib import Path

import torch
from classifier_samples import divided_engine, mean_losses

from online_aug.distributed.world import end_distributed, rank_device, start_distributed

if __name__ == "__main__":
    torch.set_num_threads(1)
    place, stage = Path(sys.argv[1]), int(sys.argv[2])
    ranks = start_distributed(rank_device(["cpu", "cpu"]))
    engine = divided_engine(ranks, stage)
    mean_losses(engine, ranks)
    engine.save(place, {"rank": ranks.rank})
    losses = mean_losses(engine, ranks)
    if ranks.is_first:
        (place / "losses.json").write_text(json.dumps(losses))
    end_distributed()
