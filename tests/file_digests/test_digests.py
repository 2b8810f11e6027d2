"""Digests of many images are a sequence of strings, and a mapping to places, in 16 bytes each."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.file_digests.digests import Digests

DIGESTS = ["ff" * 16, "00" * 16, "ab" * 15 + "00", "00" * 16, "00" * 15 + "01"]
few = st.lists(st.binary(min_size=16, max_size=16).map(bytes.hex), max_size=20)


def test_digests_are_the_strings_they_were_made_of():
    digests = Digests.of(DIGESTS)
    assert list(digests) == DIGESTS
    assert [digests[place] for place in range(5)] == DIGESTS
    assert list(digests[1:3]) == DIGESTS[1:3]
    assert list(digests[np.array([4, 0])]) == [DIGESTS[4], DIGESTS[0]]
    assert digests[-1] == DIGESTS[-1]


@given(few, few)
def test_places_are_those_of_a_dict_of_strings(strings, others):
    places = Digests.of(strings).places
    expected = {digest: place for place, digest in enumerate(strings)}
    assert dict(places) == expected
    assert list(places) == sorted(expected)
    wanted = [*strings, *others]
    found = places.find(Digests.of(wanted).rows)
    assert found.tolist() == [expected.get(digest, -1) for digest in wanted]


def test_a_zero_at_the_end_of_a_digest_counts():
    places = Digests.of(DIGESTS).places
    assert (places["00" * 16], places["ab" * 15 + "00"]) == (3, 2)
    assert "ab" * 15 not in places


@pytest.mark.parametrize("other", ["ff" * 15, "FF" * 16, "f f" * 16, "nonsense", "", 3, None])
def test_what_is_no_digest_is_not_found(other):
    digests = Digests.of(DIGESTS)
    assert other not in digests
    assert digests.places.get(other) is None


def test_each_is_once_in_ascending_order():
    assert list(Digests.of(DIGESTS).sorted) == sorted(set(DIGESTS))


def test_there_may_be_none():
    none = Digests.of([])
    assert (list(none), list(none.sorted), dict(none.places)) == ([], [], {})
    assert none.places.find(Digests.of(DIGESTS).rows).tolist() == [-1] * 5


@pytest.mark.parametrize("strings", [["ab"], ["ab" * 17], ["zz" * 16]])
def test_other_strings_are_refused(strings):
    with pytest.raises(ValueError, match="hexadecimal"):
        Digests.of(strings)


def test_they_take_little_more_than_their_bytes_to_another_process():
    digests = Digests(np.random.default_rng(0).integers(0, 256, (1000, 16), np.uint8))
    content = pickle.dumps(digests)
    assert pickle.loads(content) == digests
    assert len(content) < 17_000
