"""Every process of a run is killed at random moments; for a night."""

import pytest

from benchmarks.training import kill_torture

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(3600)]


def test_whichever_process_is_killed_nothing_is_left_and_the_next_launch_goes_on(tmp_path, capsys):
    status = kill_torture.main(["--kills", "30", "--seed", "1", "--dir", str(tmp_path / "kills")])
    out = capsys.readouterr().out
    assert status == 0, out
    assert all(f"{kind} of " in out for kind in ("head", "launcher", "rank"))
