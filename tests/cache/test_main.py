"""`python -m cache`: its command line and what it loads."""

import subprocess
import sys
from pathlib import Path

import pytest
from exchange_samples import assert_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["polish", "x"], "invalid choice: 'polish'"),
        (["stats"], "the following arguments are required: PATH"),
        (["list", "x", "--limit", "-1"], "must be a whole number from 0, got '-1'"),
        (["stats", "x", "--jsno"], "unrecognized arguments: --jsno"),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_two(arguments, message, run):
    assert_refused(run(*arguments), message)


def test_it_runs_as_a_module_and_loads_no_torch(birds):
    command = [sys.executable, "-X", "importtime", "-m", "cache", "stats", str(birds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "entries" in done.stdout
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert {"cache", "lmdb"} <= loaded
    assert not loaded & {"online_aug", "torch"}
