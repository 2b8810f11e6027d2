"""Strengths that are learned by class: the trials, what follows from them, and the requests."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_samples import CLASSES, make_context, make_method, make_part, make_sources

from online_aug.methods.adaptive import (
    Learning,
    Outcome,
    StrengthTable,
    learn_strengths,
    trials_of,
)
from online_aug.planning import Images, Plan
from online_aug.seeding import numpy_rng

GRID = (0.3, 0.5, 0.7)
SETTINGS = Learning(strengths=GRID, trials=6, min_accepted=0.8)
SOURCES = make_sources(12)
IMAGES = Images.of(SOURCES)
NAMES = ("diff_mix", "diff_aug", "real_guidance", "da_fusion", "sgd_mix")
outcomes = st.lists(
    st.builds(
        Outcome,
        target_label=st.integers(0, CLASSES - 1),
        strength=st.sampled_from(GRID),
        is_accepted=st.booleans(),
    ),
    max_size=40,
)


def outcome(label, strength, *, is_accepted):
    return Outcome(target_label=label, strength=strength, is_accepted=is_accepted)


def tried(limits, times=6):
    """Trials of classes of which every image up to a strength is accepted."""
    return [
        outcome(label, strength, is_accepted=strength <= limit)
        for label, limit in enumerate(limits)
        for strength in GRID
        for _ in range(times)
    ]


def part_of(name, learned):
    table = StrengthTable(trials=trials_of(SOURCES, 4, SETTINGS), learned=learned)
    return make_part(name, strength="adaptive", tried_strengths=GRID, strengths=table)


def test_each_class_gets_the_largest_strength_that_is_accepted():
    assert learn_strengths(tried([0.3, 0.7, 0.5]), 3, SETTINGS) == (0.3, 0.7, 0.5)


def test_a_class_of_which_nothing_is_accepted_gets_what_the_others_bear_best():
    assert learn_strengths(tried([0.3, 0.0]), 2, SETTINGS)[1] == 0.3


def test_if_nothing_at_all_is_accepted_the_smallest_strength_is_taken():
    assert learn_strengths(tried([0.0, 0.0]), 2, SETTINGS) == (0.3, 0.3)


def test_a_judge_that_errs_on_good_images_too_changes_nothing():
    good = [outcome(0, s, is_accepted=n < 6) for s in (0.3, 0.5) for n in range(10)]
    bad = [outcome(0, 0.7, is_accepted=n < 3) for n in range(10)]
    assert learn_strengths(good + bad, 1, SETTINGS) == (0.5,)


def test_a_class_without_trials_is_judged_by_the_others():
    assert learn_strengths(tried([0.5, 0.5]), 3, SETTINGS)[2] == 0.5


def test_a_lower_limit_allows_more_strength():
    found = [outcome(0, 0.7, is_accepted=number < 5) for number in range(10)] + tried([0.5])
    strict, mild = (replace_limit(limit) for limit in (0.8, 0.3))
    assert learn_strengths(found, 1, strict) == (0.5,)
    assert learn_strengths(found, 1, mild) == (0.7,)


def replace_limit(limit):
    return replace(SETTINGS, min_accepted=limit)


@given(outcomes, st.randoms())
def test_the_order_of_the_evidence_does_not_matter(found, rng):
    mixed = list(found)
    rng.shuffle(mixed)
    assert learn_strengths(found, CLASSES, SETTINGS) == learn_strengths(mixed, CLASSES, SETTINGS)


def test_the_trials_of_a_class_take_each_strength_equally_often():
    trials = trials_of(SOURCES, 4, SETTINGS)
    label_of = {source.digest: source.label for source in SOURCES}
    counts = Counter((label_of[digest], strength) for (digest, _), strength in trials.items())
    assert counts == dict.fromkeys(((c, s) for c in range(CLASSES) for s in GRID), 2)


def test_an_image_that_is_tried_twice_is_tried_at_two_strengths():
    trials = trials_of(SOURCES, 4, SETTINGS)
    pairs = [[s for (digest, _), s in trials.items() if digest == each.digest] for each in SOURCES]
    assert all(len(set(pair)) == 2 for pair in pairs)


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 1000])
def test_the_first_images_of_each_class_are_enough_to_know_the_trials(trials):
    sources = [*make_sources(11), *make_sources(30)[20:23]]
    learning = replace(SETTINGS, trials=trials)
    some = Images.of(sources[::-1]).first_of_classes(trials)
    assert trials_of(some, 4, learning) == trials_of(sources, 4, learning)


def test_there_are_no_more_trials_than_requests():
    many = replace(SETTINGS, trials=1000)
    assert len(trials_of(SOURCES, 2, many)) == 24


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_trial_has_the_strength_of_its_class(name):
    learned = (0.3, 0.5, 0.7, 0.5)
    part = part_of(name, learned)
    requests = Plan([part], IMAGES, 4)
    later = [
        r for r in requests if (r.source_digest, r.variant) not in part.context.strengths.trials
    ]
    assert len(later) == 24
    assert [r.strength for r in later] == [learned[r.target_label] for r in later]


@pytest.mark.parametrize("name", NAMES)
def test_the_trials_are_requests_of_the_plan_whatever_is_learned(name):
    trials = Plan([part_of(name, None)], IMAGES, 4).trials()
    whole = Plan([part_of(name, (0.7,) * CLASSES)], IMAGES, 4)
    assert len(trials) == 24
    assert {request.key for request in trials} <= {request.key for request in whole}


@pytest.mark.parametrize("name", NAMES)
def test_a_learned_strength_leaves_everything_else_as_it_was(name):
    fixed = make_part(name, strength=GRID)
    pairs = zip(
        Plan([part_of(name, (0.5,) * CLASSES)], IMAGES, 4),
        Plan([fixed], IMAGES, 4),
        strict=True,
    )
    assert all(replace(one, strength=1.0) == replace(other, strength=1.0) for one, other in pairs)


def test_a_plan_without_the_strengths_is_refused():
    method = make_method("diff_aug", strength="adaptive")
    with pytest.raises(ValueError, match=r"context\.strengths must be known"):
        method.plan(SOURCES[0], 0, make_context(), numpy_rng("test"))
