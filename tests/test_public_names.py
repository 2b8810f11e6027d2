"""The names that `online_aug` offers, and that they cost nothing before they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import online_aug

ROOT = Path(__file__).parents[1]
NAMES = {
    "METHODS",
    "Config",
    "Experiment",
    "GenerationRequest",
    "Method",
    "OnlineAugLoader",
    "__version__",
    "load_config",
    "open_loader",
}


def test_the_list_of_public_names_is_settled():
    assert set(online_aug.__all__) == NAMES
    assert set(dir(online_aug)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there(name):
    assert getattr(online_aug, name)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'online_aug' has no attribute 'open_loder'"):
        online_aug.open_loder  # noqa: B018


def test_importing_the_package_loads_no_torch():
    code = "import sys, online_aug; dir(online_aug); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_reading_a_configuration_loads_no_torch():
    code = (
        "import sys; from online_aug import load_config; from pathlib import Path; "
        "load_config(Path('configs/quickstart.yaml')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
