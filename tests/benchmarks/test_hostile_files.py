"""A short run of `python -m benchmarks.hostile_files`."""

import pytest

from benchmarks import hostile_files
from benchmarks.hostile_files import KINDS, run

EACH = 12


def test_files_of_every_kind_are_read_if_they_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_files, "LEFT_ALONE", 1)
    found = run(tmp_path, len(KINDS), 0)
    files = KINDS.keys() - {"override"}  # a value in the place of another, and no file
    assert {kind for kind, outcome in found if outcome == "read"} >= files


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_hostile_files_are_read_or_refused_in_one_line(tmp_path, seed):
    count = EACH * len(KINDS) * (1 if seed == 1 else 5)
    outcomes = run(tmp_path, count, seed)
    assert outcomes.total() == count
    assert {outcome for _, outcome in outcomes} == {"read", "refused"}
    for kind in KINDS:
        assert outcomes[kind, "read"] > 0
        assert outcomes[kind, "refused"] > 0
