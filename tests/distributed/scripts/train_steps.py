"""A rank that trains: `train_steps.py FOLDER` leaves the losses there."""

import json
import os
import sys
from pathlib import Path

import torch
from classifier_samples import train_and_resume

from online_aug.distributed.world import (
    agree,
    end_distributed,
    is_same_everywhere,
    rank_device,
    share,
    start_distributed,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    ranks = start_distributed(rank_device(["cpu"] * int(os.environ["WORLD_SIZE"])))
    assert agree(ranks, ranks.rank) == ranks.world_size - 1
    assert share(ranks, b"from the first" if ranks.is_first else b"") == b"from the first"
    assert is_same_everywhere(ranks, [b"as", b"here"])
    assert not is_same_everywhere(ranks, [bytes([ranks.rank])])
    assert (ranks.nodes, ranks.local_world_size) == (1, ranks.world_size)
    found = train_and_resume(ranks, place)
    if ranks.is_first:
        (place / "losses.json").write_text(json.dumps(found))
    end_distributed()
