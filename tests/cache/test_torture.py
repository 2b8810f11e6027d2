"""Short runs of the torture benchmarks; longer ones are nightly."""

import pytest

from benchmarks.caching import flips, fuzz, torture


@pytest.mark.slow
@pytest.mark.parametrize("kills", ["3", pytest.param("20", marks=pytest.mark.nightly)])
def test_killed_writers_and_readers_lose_nothing_and_leave_nothing_behind(kills, capsys):
    status = torture.main(["--kills", kills, "--seed", "1"])
    out = capsys.readouterr().out
    assert status == 0, out
    assert ", 0 lost" in out
    assert "verify: clean" in out


@pytest.mark.slow
@pytest.mark.parametrize("stride", ["1499", pytest.param("101", marks=pytest.mark.nightly)])
def test_a_flipped_byte_is_harmless_or_refused_or_detected(stride, capsys):
    status = flips.main(["--stride", stride])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "\n0 bad ends" in out


@pytest.mark.parametrize("count", ["2000", pytest.param("50000", marks=pytest.mark.nightly)])
def test_random_and_mutated_bytes_are_refused_with_our_error(count, capsys):
    status = fuzz.main(["--count", count, "--seed", "1"])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "\n0 bugs" in out
