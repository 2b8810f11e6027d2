"""Two ranks, a node each, of which one fails."""

import subprocess
import sys

import pytest
from launches import LIMIT_S, SCRIPTS, environment

from online_aug.distributed.launcher import free_port

pytestmark = pytest.mark.slow


def run_two(folder, who, how):
    """Statuses and what was said, by rank."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPTS / "fail_together.py", folder, str(who), how],
            env=environment(RANK=str(rank), **shared),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=LIMIT_S)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


@pytest.mark.parametrize("who", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_every_node_says_the_first_error(tmp_path, who):
    statuses, said = run_two(tmp_path, who, "worded")
    assert (statuses[who], said[who]) == (2, "error: key must be a value, got none\n")
    assert (statuses[1 - who], said[1 - who]) == (
        1,
        f"error: rank {who} ended the run: key must be a value, got none\n",
    )


def test_a_killed_rank_ends_the_others_with_a_line_and_older_failures_are_forgotten(tmp_path):
    (tmp_path / ".failure").write_text("rank 7 ended the run: long ago")
    statuses, said = run_two(tmp_path, 1, "killed")
    assert statuses == [1, -9]
    assert said[0] == (
        "error: another rank ended the run without a word; it may have been killed\n"
    )
