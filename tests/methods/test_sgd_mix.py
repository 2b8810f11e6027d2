from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from request_samples import digest_of, make_part, make_sources, make_table
from skimage.filters import threshold_otsu

from online_aug.methods.foreground_mix import SOURCE_TOO_SMALL, TARGET_TOO_SMALL, UNION_TOO_LARGE
from online_aug.saliency import SaliencyTable, upscaled
from online_aug.seeding import numpy_rng

COUNT = 60
SOURCES = make_sources(COUNT)
TABLE = make_table(COUNT)
SIDE = 16
seeds = st.integers(0, 2**32)
places = st.integers(0, COUNT - 1)


def part_of(table=TABLE, **limits):
    return make_part("sgd_mix", saliency=table, **limits)


PART = part_of(candidates=(30, 50))
METHOD, CONTEXT = PART.method, PART.context


def plan(place, seed=0, part=PART):
    return part.method.plan(SOURCES[place], 0, part.context, numpy_rng("test", seed))


def refusal(request, part):
    return part.method.refusal(request, part.context)


def distance(one, other):
    """Return the distance of two maps, added up number by number."""
    pairs = zip(TABLE.maps[one].flat, TABLE.maps[other].flat, strict=True)
    return sum((float(a) - float(b)) ** 2 for a, b in pairs) ** 0.5


@given(st.integers(0, COUNT - 1), st.sets(places, min_size=1))
def test_the_nearest_candidate_is_the_one_that_brute_force_finds(place, candidates):
    found = TABLE.nearest(place, np.array(sorted(candidates)))
    assert found in candidates
    least = min(distance(place, other) for other in candidates)
    assert distance(place, found) == pytest.approx(least, abs=1e-6)


@given(places, seeds)
def test_with_all_others_as_candidates_the_background_is_the_nearest_of_all(place, seed):
    part = part_of(candidates=(COUNT - 1, COUNT - 1), max_union_share=1.0)
    found = TABLE.place(plan(place, seed, part).target_digest)
    own = TABLE.place(SOURCES[place].digest)
    others = [distance(own, other) for other in range(COUNT) if other != own]
    assert distance(own, found) == pytest.approx(min(others), abs=1e-6)


@given(places, seeds)
def test_the_background_is_never_the_source_itself(place, seed):
    for candidates in ((1, 1), (COUNT - 1, COUNT - 1)):
        request = plan(place, seed, part_of(candidates=candidates))
        assert request.target_digest != request.source_digest


def test_a_single_candidate_may_be_any_other_image():
    part = part_of(candidates=(1, 1), max_union_share=1.0)
    found = {plan(3, seed, part).target_digest for seed in range(1500)}
    assert found == set(TABLE.digests) - {SOURCES[3].digest}


def test_the_number_of_candidates_goes_evenly_from_the_fewest_to_the_most(monkeypatch):
    counts = []
    nearest = SaliencyTable.nearest
    monkeypatch.setattr(
        SaliencyTable, "nearest", lambda *a: counts.append(len(set(a[2]))) or nearest(*a)
    )
    for seed in range(2100):
        plan(0, seed, part_of(candidates=(30, 50), max_union_share=1.0))
    found = np.bincount(counts, minlength=51)[30:51]
    assert len(counts) == found.sum() == 2100
    assert (np.abs(found - 100) < 5 * 10).all()


def test_a_request_names_the_background_and_the_version_of_the_maps():
    request = plan(5)
    assert request.target_digest in TABLE.digests
    assert request.saliency_version == "v1"
    assert request.target_label == request.source_label
    assert request.prompt == CONTEXT.prompts[request.source_label]


def test_a_plan_without_maps_is_an_error():
    with pytest.raises(ValueError, match=r"context\.saliency must be a table for sgd_mix"):
        plan(0, part=part_of(None))


def test_a_source_that_the_table_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="source must be in saliency table v1, got"):
        plan(30, part=part_of(make_table(30)))


def mask_by_hand(digest):
    """Threshold a map with scikit-image."""
    small = torch.from_numpy(TABLE.maps[[TABLE.place(digest)]])
    large = upscaled(small, (SIDE, SIDE))[0].double().numpy()
    return large > threshold_otsu(large)


def mixed_by_hand(request, source, background):
    """Mix two images pixel by pixel."""
    masks = [mask_by_hand(digest) for digest in (request.source_digest, request.target_digest)]
    mixed = background.copy()
    for y in range(SIDE):
        for x in range(SIDE):
            if masks[0][y, x] or masks[1][y, x]:
                mixed[y, x] = source[y, x]
    return mixed


@given(st.lists(places, min_size=1, max_size=4), seeds)
def test_the_mix_is_the_source_under_both_masks_and_the_background_elsewhere(chosen, seed):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(256, size=(COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    stock = {digest_of(n): pictures[n] for n in range(COUNT)}
    requests = [plan(place, seed) for place in chosen]
    sources = np.stack([stock[r.source_digest] for r in requests])
    mixed = METHOD.prepare(sources, requests, CONTEXT, stock.__getitem__)
    for found, request, source in zip(mixed, requests, sources, strict=True):
        expected = mixed_by_hand(request, source, stock[request.target_digest])
        np.testing.assert_array_equal(found, expected)


def corner_table(widths):
    """Maps with a foreground in the upper left corner, of these widths in eighths of the image."""
    maps = {}
    for number, width in enumerate(widths):
        values = np.zeros((32, 32))
        values[: 4 * width, : 4 * width] = 1
        maps[digest_of(number)] = values
    return SaliencyTable.from_maps("v2", maps)


def test_a_source_without_a_foreground_is_refused_with_that_reason():
    part = part_of(corner_table([1, 4, 4, 4, 4]), candidates=(4, 4))
    assert refusal(plan(0, part=part), part) == SOURCE_TOO_SMALL
    assert refusal(plan(1, part=part), part) is None


def test_a_background_whose_own_foreground_was_not_found_is_refused_with_that_reason():
    # Its object would stay in the picture, under the source's label.
    part = part_of(corner_table([1, 4]), candidates=(1, 1))
    assert refusal(plan(1, part=part), part) == TARGET_TOO_SMALL
    looser = part_of(corner_table([1, 4]), candidates=(1, 1), min_source_share=0.01)
    assert refusal(plan(1, part=looser), looser) is None


def test_candidates_are_drawn_again_until_the_background_s_own_foreground_is_known():
    table = corner_table([4, 1, 1, 4])
    once = part_of(table, candidates=(1, 1), max_draws=1)
    often = part_of(table, candidates=(1, 1), max_draws=200)
    assert TARGET_TOO_SMALL in [refusal(plan(0, s, once), once) for s in range(30)]
    assert all(refusal(plan(0, s, often), often) is None for s in range(30))


def test_a_union_that_leaves_no_background_is_refused_with_that_reason():
    part = part_of(corner_table([7, 4]), candidates=(1, 1), max_union_share=0.7)
    request = plan(1, part=part)
    assert refusal(request, part) == UNION_TOO_LARGE
    wider = part_of(corner_table([7, 4]), candidates=(1, 1), max_union_share=0.8)
    assert refusal(request, wider) is None


def test_candidates_are_drawn_again_until_a_background_fits():
    # Only the last image leaves enough of the canvas; one candidate at a time.
    table = corner_table([4, 7, 7, 4])
    once = part_of(table, candidates=(1, 1), max_union_share=0.5, max_draws=1)
    often = part_of(table, candidates=(1, 1), max_union_share=0.5, max_draws=200)
    refused = [refusal(plan(0, s, once), once) for s in range(30)]
    assert UNION_TOO_LARGE in refused
    assert None in refused
    assert all(refusal(plan(0, s, often), often) is None for s in range(30))


def test_drawing_again_ends():
    table = corner_table([4, 7, 7, 7])
    part = part_of(table, candidates=(3, 3), max_union_share=0.5, max_draws=50)
    assert refusal(plan(0, 0, part), part) == UNION_TOO_LARGE


@given(places, seeds)
def test_the_label_is_the_source_s_alone(place, seed):
    image = np.zeros((4, 4, 3), np.uint8)
    request = plan(place, seed)
    _, label = METHOD.compose(lambda: image, image, request, CONTEXT, numpy_rng("c"))
    assert label.tolist() == [float(k == SOURCES[place].label) for k in range(4)]


def test_the_stages_lead_from_the_source_to_the_mix():
    request = plan(4)
    stock = {digest_of(n): np.full((SIDE, SIDE, 3), n, np.uint8) for n in range(COUNT)}
    image = np.zeros((9, 5, 3), np.uint8)
    stages = METHOD.stages(image, image, request, CONTEXT, stock.__getitem__, numpy_rng("s"))
    assert list(stages) == ["source", "saliency", "mask", "target", "mixed", "generated"]
    source, target = (stock[d] for d in (request.source_digest, request.target_digest))
    np.testing.assert_array_equal(stages["target"], target)
    assert set(np.unique(stages["mask"])) == {0, 255}
    assert stages["saliency"].max() >= 254
    np.testing.assert_array_equal(stages["mixed"], np.where(stages["mask"] == 255, source, target))


def test_other_limits_leave_strength_and_noise_as_they_are():
    one, other = plan(0), plan(0, part=part_of(candidates=(2, 3)))
    assert (one.strength, one.noise_seed) == (other.strength, other.noise_seed)


def test_the_foreground_that_has_to_stay_is_the_source_s_own_otsu_mask():
    part = part_of(keeps_foreground=True)
    requests = [plan(place, part=part) for place in range(4)]
    expected = np.stack([mask_by_hand(request.source_digest) for request in requests])
    np.testing.assert_array_equal(part.method.kept(requests, part.context, SIDE), expected)


def test_keeping_the_foreground_changes_nothing_else_of_a_request():
    kept = plan(3, part=part_of(candidates=(30, 50), keeps_foreground=True))
    assert replace(kept, keeps="nothing") == plan(3)
