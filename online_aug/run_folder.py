"""Where a run lies; the one rule that training and the commands that come after it share."""

from pathlib import Path

from online_aug.config import RunConfig


def run_folder(run: RunConfig, config_path: Path) -> Path:
    """The run directory: `run.name`, or the YAML file's name and the seed, under `run.dir`."""
    return run.dir / (run.name or f"{config_path.stem}-seed{run.seed}")
