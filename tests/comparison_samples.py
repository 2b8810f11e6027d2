"""Finished runs of a comparison, invented: the files that a table is made from."""

from dataclasses import replace

from run_records import epoch, summary

from online_aug.comparison.runs import Run
from online_aug.config.loading import resolved_yaml
from online_aug.files import to_json
from online_aug.reporting.metrics import MetricsLog

VANILLA = ("mixing.synthetic_probability=0",)


def make_run(folder, row, seed, overrides=(), recipe="pocket_birds_sgd_mix"):
    keys = (*overrides, f"run.seed={seed}", "run.epochs=1")
    return Run(row, seed, recipe, keys, folder / f"{row}-{seed}")


def finish(run, top1, *, steps=5, **changes):
    """Write what a run of one epoch leaves; `changes` are to its summary."""
    run.folder.mkdir(parents=True)
    served = {"served_real": 10, "served_fresh": 0, "served_cached": 0, "starved": 0}
    log = MetricsLog(run.folder, from_epoch=0)
    log.append(epoch(0, step=steps, **served))
    log.close()
    found = replace(summary(1), **{**served, "generated": 0, "reused": 0, "top1": top1, **changes})
    (run.folder / "config.yaml").write_text(resolved_yaml(run.config))
    (run.folder / "summary.json").write_text(to_json(found))
    return run
