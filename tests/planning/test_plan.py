import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_samples import CLASSES, make_part, make_plan, make_request, make_sources, make_table

from online_aug.methods import METHODS
from online_aug.planning import Images, ListedRequests, Plan, Served

SOURCES = make_sources(12)
IMAGES = Images.of(SOURCES)


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
    requests = Plan(parts, IMAGES, 60)
    names = Counter(request.method for request in requests)
    for name, share in (("diff_mix", 3 / 8), ("diff_aug", 1 / 8), ("sgd_mix", 1 / 2)):
        assert names[name] / len(requests) == pytest.approx(share, abs=0.06)


def test_what_a_method_asks_for_among_others_it_asks_for_alone():
    requests = Plan([part("diff_mix"), part("diff_aug")], IMAGES, 4)
    for name in ("diff_mix", "diff_aug"):
        shared = {request.key for request in requests if request.method == name}
        assert shared
        assert shared < set(keys(plan(variants=4, name=name)))


def test_other_weights_change_the_method_of_few_requests():
    one, other = (
        Plan([part("diff_mix", weight), part("diff_aug")], IMAGES, 30) for weight in (1.0, 1.2)
    )
    differing = len(set(keys(one)) ^ set(keys(other))) / 2
    assert 0 < differing / len(one) < 0.15


def with_copies(count):
    """Images in an order of their own, some of them twice, and the plan of all."""
    sources = make_sources(count)
    return [*sources[::-1], *sources[::3]]


PARTS = {
    "drawn classes": ["diff_mix"],
    "own classes": ["diff_aug"],
    "several methods": ["diff_mix", "sgd_mix", "diff_aug"],
}
part_lists = pytest.mark.parametrize("names", PARTS.values(), ids=PARTS)


def plan_of(names, variants=3, sources=12, **changes):
    parts = [make_part(name, **changes) for name in names]
    return Plan(parts, Images.of(with_copies(sources)), variants)


@part_lists
def test_every_request_is_found_again_by_what_its_record_says(names):
    requests = plan_of(names)
    for number, request in enumerate(requests):
        assert requests.number_of(request.key, request.to_fields()) == number
        assert requests.number(request.source_digest, request.variant) == number
        assert number in requests.variants(request.source_digest)
        assert requests.variant(number) == request.variant


@part_lists
def test_many_requests_are_known_at_once_without_making_them(names):
    requests = plan_of(names)
    numbers = np.arange(len(requests))[::-1]
    made = [requests[int(number)] for number in numbers]
    assert requests.target_labels(numbers).tolist() == [r.target_label for r in made]
    assert requests.spread(numbers).tolist() == [r.spread for r in made]
    digests = [*(source.digest for source in make_sources(14))]
    assert requests.counts(digests).tolist() == [len(requests.variants(d)) for d in digests]


def test_a_record_of_another_plan_has_no_number():
    requests, other = plan_of(["diff_mix"]), plan_of(["diff_mix"], seed=5)
    assert {requests.number_of(r.key, r.to_fields()) for r in other} == {None}
    first = requests[0]
    for changed in (
        {"source_digest": make_sources(13)[12].digest},
        {"source_digest": "no digest"},
        {"source_digest": "ab"},
        {"source_digest": None},
        {"variant": 3},
        {"variant": -1},
        {"variant": "0"},
    ):
        assert requests.number_of(first.key, first.to_fields() | changed) is None
    assert requests.number_of(first.key, {}) is None


def test_the_order_of_the_sources_and_their_copies_do_not_change_the_plan():
    shuffled = Plan([make_part()], Images.of(with_copies(12)), 3)
    assert keys(shuffled) == keys(plan())
    assert shuffled.digest == Plan([make_part()], IMAGES, 3).digest


def test_copies_with_other_labels_have_that_of_the_last():
    sources = [*make_sources(4), replace(make_sources(4)[1], label=3)]
    labels = {r.source_digest: r.source_label for r in Plan([make_part()], Images.of(sources), 1)}
    assert labels[sources[1].digest] == 3
    assert len(labels) == 4


def test_a_plan_reads_as_a_list_and_pickles_without_its_requests():
    requests = plan_of(["diff_mix"])
    listed = list(requests)
    assert [requests[number] for number in range(len(requests))] == listed
    assert requests[-1] == listed[-1]
    assert list(requests[5:20:4]) == listed[5:20:4]
    assert requests[5:20:4][1] == listed[9]
    assert listed[7] in requests
    assert requests.index(listed[7]) == 7
    with pytest.raises(IndexError):
        requests[len(requests)]
    small, large = (len(pickle.dumps(plan_of(["diff_mix"], variants=count))) for count in (1, 1000))
    assert large <= small + 8
    assert list(pickle.loads(pickle.dumps(requests))) == listed  # noqa: S301


def test_a_request_is_made_alone():
    made = []

    class Counting(type(make_part().method)):
        def plan(self, source, variant, context, rng):
            made.append(variant)
            return super().plan(source, variant, context, rng)

    part = replace(make_part(), method=Counting(make_part().method.settings))
    requests = Plan([part], Images.of(make_sources(500)), 100_000)
    assert requests[40_000_000].variant == 80_000
    assert requests[40_000_000].key
    assert made == [80_000]


DIFFERING = {
    "sources": lambda: Plan([make_part()], Images.of(make_sources(13)), 3),
    "labels": lambda: Plan(
        [make_part()], Images.of([replace(source, label=0) for source in SOURCES]), 3
    ),
    "variants": lambda: Plan([make_part()], IMAGES, 4),
    "method": lambda: Plan([make_part("diff_aug")], IMAGES, 3),
    "several": lambda: Plan([make_part(), make_part("diff_aug")], IMAGES, 3),
    "weights": lambda: Plan([make_part(weight=2.0), make_part("diff_aug")], IMAGES, 3),
    "seed": lambda: Plan([make_part(seed=1)], IMAGES, 3),
    "strengths": lambda: Plan([make_part(strength=(0.4,))], IMAGES, 3),
    "a prompt": lambda: Plan([make_part(prompts=("a", "b", "c", "d"))], IMAGES, 3),
    "class sizes": lambda: Plan([make_part(class_sizes=(3, 3, 3, 4))], IMAGES, 3),
    "steps": lambda: Plan([make_part(num_inference_steps=9)], IMAGES, 3),
    "model": lambda: Plan([make_part(generator_fingerprint="f1")], IMAGES, 3),
    "maps": lambda: Plan([make_part(saliency=replace(make_table(12), version="v2"))], IMAGES, 3),
}


def test_plans_of_other_inputs_have_other_digests_and_equal_ones_the_same():
    digests = [
        Plan([make_part()], IMAGES, 3).digest,
        *(make().digest for make in DIFFERING.values()),
    ]
    assert len(set(digests)) == len(DIFFERING) + 1
    assert Plan([make_part()], Images.of(SOURCES[::-1]), 3).digest == digests[0]


def test_plans_and_lists_are_one_sequence_behind_one_another():
    first, second = plan_of(["diff_mix"]), plan_of(["diff_aug"], variants=2)
    own = [make_request(noise_seed=number) for number in range(3)]
    served = Served([first, ListedRequests(own)])
    served.append(second)
    everything = [*first, *own, *second]
    assert list(served) == everything
    assert list(served[30:45]) == everything[30:45]
    for number, request in enumerate(everything):
        assert served.number_of(request.key, request.to_fields()) == number
        assert number in served.variants(request.source_digest)
    digests = [source.digest for source in SOURCES]
    assert served.counts(digests).tolist() == [len(served.variants(d)) for d in digests]
    assert served.counts(digests, len(first) + 3).tolist() == [2] * 12
    assert len(Served()) == 0
