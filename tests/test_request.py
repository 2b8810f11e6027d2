import pickle
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from request_samples import VALUES, make_request, requests

from cache import canonical_bytes, decode_fields
from online_aug.loader.batch import Batch
from online_aug.request import Counts, GenerationRequest

NAMES = [field.name for field in fields(GenerationRequest)]
counts = st.builds(Counts, **dict.fromkeys(vars(Counts()), st.integers(0, 1000)))


@pytest.mark.parametrize("name", NAMES)
@given(request=requests, data=st.data())
def test_two_requests_that_differ_in_one_field_have_different_keys(name, request, data):
    other = replace(request, **{name: data.draw(VALUES[name])})
    assume(getattr(other, name) != getattr(request, name))
    assert other.key != request.key


@given(requests)
def test_equal_requests_have_one_key_of_32_bytes(request):
    same = GenerationRequest(**request.to_fields())
    assert same.key == request.key
    assert len(request.key) == 32


@given(requests)
def test_a_request_comes_back_from_what_the_cache_stores(request):
    stored = decode_fields(canonical_bytes(request.to_fields()))
    assert GenerationRequest.from_fields(stored) == request


def test_a_key_is_not_taken_over_by_a_changed_copy():
    request = make_request()
    before = request.key
    assert replace(request, variant=1).key != before


def test_a_request_pickles_to_worker_processes_with_its_key():
    request = make_request()
    copy = pickle.loads(pickle.dumps(request))
    assert (copy, copy.key) == (request, request.key)


@pytest.mark.parametrize("name", make_request().to_fields())
def test_a_record_without_a_field_is_of_another_version(name):
    stored = make_request().to_fields()
    del stored[name]
    with pytest.raises(ValueError, match=f"exactly the known fields, differs in: {name}$"):
        GenerationRequest.from_fields(stored)


def test_a_record_with_an_unknown_field_is_of_another_version():
    stored = make_request().to_fields() | {"colour": "red"}
    with pytest.raises(ValueError, match="differs in: colour$"):
        GenerationRequest.from_fields(stored)


@given(counts, counts)
def test_served_slots_add_up_kind_by_kind(one, other):
    added = one + other
    assert vars(added) == {name: vars(one)[name] + vars(other)[name] for name in vars(one)}


def test_the_shapes_of_a_batch_are_checked_while_testing():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError):
        Batch.of(images, torch.zeros(3, 5), served=Counts(real=2))
