"""Finished runs of a comparison, invented: the files that a table is made from."""

from dataclasses import replace

import numpy as np
from run_records import epoch, summary

from online_aug.comparison.runs import Run
from online_aug.config.loading import resolved_yaml
from online_aug.files import to_json
from online_aug.loader.slots import ROW, Kind
from online_aug.reporting.metrics import MetricsLog

VANILLA = ("mixing.synthetic_probability=0",)
SLOTS = 10


def make_run(folder, row, seed, overrides=(), recipe="pocket_birds_sgd_mix"):
    keys = (*overrides, f"run.seed={seed}", "run.epochs=1")
    return Run(row, seed, recipe, keys, folder / f"{row}-{seed}")


def finish(run, top1, *, steps=5, numbers=(), **changes):
    """Write what a run of one epoch leaves; `numbers` are the images that its slots got."""
    run.folder.mkdir(parents=True)
    batch = SLOTS // steps
    cached = len(numbers)
    served = {"served_real": batch * steps - cached, "served_cached": cached}
    counts = {**served, "served_fresh": 0, "starved": 0}
    log = MetricsLog(run.folder, from_epoch=0)
    log.append(epoch(0, step=steps, **counts))
    log.close()
    rows = [(n, Kind.CACHED, number) for n, number in enumerate(numbers)]
    rows += [(0, Kind.REAL, -1)] * (batch * steps - cached)
    (run.folder / "ledger").mkdir()
    np.save(run.folder / "ledger" / "epoch0000-rank0-step0.npy", np.array(rows, ROW))
    found = replace(summary(1), top1=top1, **{**counts, "generated": 0, "reused": 0, **changes})
    (run.folder / "config.yaml").write_text(resolved_yaml(run.config))
    (run.folder / "summary.json").write_text(to_json(found))
    return run
