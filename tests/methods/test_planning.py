from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_samples import CLASSES, make_part, make_plan, make_sources

from online_aug.methods import METHODS, plan_requests

SOURCES = make_sources(12)


def plan(sources=SOURCES, variants=3, name="diff_mix", **changes):
    return make_plan(sources, variants, name, **changes)


def part(name, weight=1.0):
    return make_part(name, weight=weight)


def keys(requests):
    return [request.key for request in requests]


def test_a_plan_is_a_pure_function():
    assert plan() == plan()


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=10)  # each makes three plans
@given(st.sets(st.sampled_from(range(12)), min_size=1), st.randoms())
def test_an_image_asks_for_the_same_in_another_subset_and_order(name, chosen, rng):
    subset = [SOURCES[index] for index in chosen]
    rng.shuffle(subset)
    digests = {source.digest for source in subset}
    whole = {
        key
        for key, r in zip(keys(plan(name=name)), plan(name=name), strict=True)
        if r.source_digest in digests
    }
    assert set(keys(plan(subset, name=name))) == whole


def test_every_variant_goes_once_through_all_sources():
    requests = plan(variants=4)
    digests = {source.digest for source in SOURCES}
    for variant in range(4):
        part = requests[variant * 12 : (variant + 1) * 12]
        assert {request.variant for request in part} == {variant}
        assert {request.source_digest for request in part} == digests


def test_no_image_is_asked_for_twice():
    assert len(set(keys(plan(variants=5)))) == 60


def test_more_variants_continue_a_plan():
    assert keys(plan(variants=5))[:36] == keys(plan(variants=3))


def test_the_order_of_the_sources_differs_from_variant_to_variant():
    orders = [[r.source_digest for r in plan()[start : start + 12]] for start in (0, 12, 24)]
    assert orders[0] != orders[1] != orders[2] != [source.digest for source in SOURCES]


def test_another_seed_of_generation_asks_for_other_images():
    assert not set(keys(plan(seed=1))) & set(keys(plan(seed=2)))


def test_gamma_is_for_labels_and_asks_for_the_same_images():
    assert keys(plan(gamma=0.3)) == keys(plan(gamma=0.8))


def test_another_set_of_strengths_leaves_target_and_noise_as_they_are():
    one, other = plan(strength=(0.5,)), plan(strength=(0.9,))
    assert [replace(request, strength=0.9) for request in one] == other


def test_copies_of_an_image_share_their_requests():
    assert keys(plan([*SOURCES, SOURCES[3]])) == keys(plan())


def test_targets_are_spread_over_all_classes():
    targets = [request.target_label for request in plan(make_sources(200))]
    assert np.bincount(targets, minlength=CLASSES).min() > 100


def test_of_several_methods_each_has_its_share_by_weight():
    parts = [part("diff_mix", 3), part("diff_aug", 1), part("sgd_mix", 4)]
    requests = plan_requests(parts, SOURCES, 60)
    names = Counter(request.method for request in requests)
    for name, share in (("diff_mix", 3 / 8), ("diff_aug", 1 / 8), ("sgd_mix", 1 / 2)):
        assert names[name] / len(requests) == pytest.approx(share, abs=0.06)


def test_what_a_method_asks_for_among_others_it_asks_for_alone():
    requests = plan_requests([part("diff_mix"), part("diff_aug")], SOURCES, 4)
    for name in ("diff_mix", "diff_aug"):
        shared = {request.key for request in requests if request.method == name}
        assert shared
        assert shared < set(keys(plan(variants=4, name=name)))


def test_other_weights_change_the_method_of_few_requests():
    one, other = (
        plan_requests([part("diff_mix", weight), part("diff_aug")], SOURCES, 30)
        for weight in (1.0, 1.2)
    )
    differing = len(set(keys(one)) ^ set(keys(other))) / 2
    assert 0 < differing / len(one) < 0.15
