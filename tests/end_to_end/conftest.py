import pytest
from tiny_runs import start, write_config


@pytest.fixture(scope="session")
def config(tmp_path_factory, tiny_model, embedded_root):
    """A configuration whose cache, fine-tuning and runs lie beside it."""
    return write_config(tmp_path_factory.mktemp("workplace"), tiny_model, embedded_root)


@pytest.fixture(scope="session")
def pair(config):
    """Two seeds trained at once on one cold cache, the fine-tuning theirs to do."""
    launches = [start(config, f"seed{seed}", f"run.seed={seed}") for seed in (0, 1)]
    return [launch.succeed() for launch in launches]
