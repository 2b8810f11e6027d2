import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.text import byte_size
from online_aug.console import duration, percent, rate, whole_percent
from online_aug.reporting.tables import mix_bar, shares
from online_aug.request import Counts

counts = st.integers(0, 10**9)
served = st.builds(Counts, real=counts, fresh=counts, cached=counts, starved=counts)


@given(served, st.integers(1, 200))
def test_the_mix_bar_is_always_as_long_as_asked(mix: Counts, cells: int) -> None:
    assert len(mix_bar(mix, cells)) == cells


@given(served.filter(lambda mix: mix != Counts()))
def test_shares_sum_to_one(mix: Counts) -> None:
    assert sum(shares(mix).values()) == pytest.approx(1)


def test_nothing_served_has_no_shares() -> None:
    assert set(shares(Counts()).values()) == {0.0}


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.004, "<1 %"), (0.5, "50 %"), (0.996, ">99 %"), (1.0, "100 %")],
)
def test_a_share_looks_like_none_or_all_only_when_it_is(share: float, text: str) -> None:
    assert whole_percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.44, "3.4 s"),
        (59.4, "59 s"),
        (59.9, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7260.0, "2 h 01 min"),
        (200_000.0, "2 d 7 h"),
        (float("nan"), "-"),
    ],
)
def test_a_time_is_told_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (500 * 2**20, "500 MiB"), (2**50, "1024 TiB")]
)
def test_a_size_is_told_in_its_largest_unit(size: int, text: str) -> None:
    assert byte_size(size) == text


def test_a_figure_that_is_not_known_is_a_dash() -> None:
    assert (percent(float("nan")), rate(float("inf"))) == ("-", "-")
