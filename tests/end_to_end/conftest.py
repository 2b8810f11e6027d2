import json
import os

import pytest
from filelock import FileLock
from tiny_runs import start, write_config


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workplace"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def config(workplace, embedded_root):
    """A configuration whose model, cache, fine-tuning and runs lie beside it."""
    from tiny_model import write_tiny_model

    with FileLock(workplace / "config.lock"):
        if not (workplace / "tiny.yaml").exists():
            write_config(workplace, write_tiny_model(workplace / "model"), embedded_root)
    return workplace / "tiny.yaml"


@pytest.fixture(scope="session")
def pair(workplace, config):
    """Train two seeds at once on one cold cache; return the output of both."""
    told = workplace / "pair.json"
    with FileLock(workplace / "pair.lock"):
        if not told.exists():
            launches = [start(config, f"seed{seed}", f"run.seed={seed}") for seed in (0, 1)]
            told.write_text(json.dumps([launch.succeed().out for launch in launches]))
    return json.loads(told.read_text())
