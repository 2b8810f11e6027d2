"""Names of many files are a sequence of strings in one run of bytes."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_aug.file_digests import names as module
from online_aug.file_digests.names import Names

one = st.binary(min_size=1, max_size=6).filter(lambda name: b"\0" not in name).map(os.fsdecode)
several = st.lists(one, max_size=20)


@given(several)
def test_names_are_the_strings_they_were_made_of(strings):
    names = Names.of(strings)
    assert list(names) == strings
    assert [names[place] for place in range(-len(names), len(names))] == strings * 2
    assert list(names[1:-1]) == strings[1:-1]
    assert list(names[5:2]) == []
    assert list(names[::2]) == strings[::2]
    order = np.arange(len(strings))[::-1]
    assert list(names[order]) == strings[::-1]
    assert list(names + names) == strings * 2
    assert pickle.loads(pickle.dumps(names)) == names
    for place in (len(strings), -len(strings) - 1):
        with pytest.raises(IndexError):
            names[place]


@given(several, several)
def test_names_are_found_among_others(strings, others):
    places = set(others)
    found = Names.of(strings).places_in(Names.of(others)).tolist()
    assert [others[place] if place >= 0 else None for place in found] == [
        name if name in places else None for name in strings
    ]


def test_names_that_share_a_hash_are_not_taken_for_each_other(monkeypatch):
    monkeypatch.setattr(module, "hash", lambda name: 7, raising=False)
    found = Names.of(["a", "b"]).places_in(Names.of(["c", "a"])).tolist()
    assert found == [-1, -1]  # read again rather than taken for another


@given(several, st.sampled_from([".png", ".JPEG", ".x"]))
def test_endings_are_compared_in_any_case(strings, suffix):
    strings = [*strings, "a.PNG", "a.jpeg", ".x", "x", "apng"]
    expected = [name.lower().endswith(suffix.lower()) for name in strings if name.isascii()]
    found = Names.of([name for name in strings if name.isascii()]).ends_with(suffix)
    assert found.tolist() == expected
