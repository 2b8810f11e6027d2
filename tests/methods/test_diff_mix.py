from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_samples import (
    CLASSES,
    make_context,
    make_method,
    make_part,
    make_request,
    make_sources,
)
from scipy.ndimage import maximum_filter

from online_aug.methods.diff_mix import NO_OBJECT, NOTHING_TO_EDIT
from online_aug.methods.foreground_mix import widened
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng

CONTEXT = make_context()
SOURCES = make_sources(CLASSES)
RNG = numpy_rng("test", 0)


def targets(name, source, count):
    method = make_method(name)
    plans = (method.plan(source, 0, CONTEXT, numpy_rng("test", seed)) for seed in range(count))
    return [request.target_label for request in plans]


WITHIN = ["diff_aug", "diff_gen", "real_gen", "real_guidance", "da_fusion"]
BETWEEN = ["diff_mix", "real_mix"]


@pytest.mark.parametrize("name", BETWEEN)
def test_every_class_is_drawn_equally_often_the_own_one_included(name):
    counts = np.bincount(targets(name, SOURCES[1], 1200), minlength=CLASSES)
    assert (np.abs(counts - 300) < 5 * np.sqrt(300 * 0.75)).all()


@pytest.mark.parametrize("name", BETWEEN)
def test_targets_are_drawn_by_the_sizes_of_the_classes_if_asked_to(name):
    context, method = make_context(class_sizes=(1, 9, 4, 3)), make_method(name, target_balance=1)
    plans = (method.plan(SOURCES[1], 0, context, numpy_rng("test", n)) for n in range(1000))
    counts = np.bincount([request.target_label for request in plans], minlength=CLASSES)
    np.testing.assert_allclose(counts / 1000, np.array([10, 2, 4, 5]) / 21, atol=0.06)


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("source", SOURCES)
def test_intra_class_baselines_stay_in_the_class_of_the_source(source, name):
    assert set(targets(name, source, 50)) == {source.label}


EDITING = ["diff_aug", "real_guidance", "da_fusion"]
SIDE = 64


def foregrounds(*boxes):
    """The foreground of each of some images: rows and columns from and to, of 32."""
    maps = {source.digest: np.zeros((32, 32)) for source in SOURCES}
    for source, (top, bottom, left, right) in zip(SOURCES, boxes, strict=False):
        maps[source.digest][top:bottom, left:right] = 1
    masks = {digest: values > 0 for digest, values in maps.items()}
    return SaliencyTable.from_maps("v3", maps, masks)


def edit(edits, table, source=SOURCES[0], name="da_fusion", **settings):
    part = make_part(name, edits=edits, saliency=table, **settings)
    return part, part.method.plan(source, 0, part.context, numpy_rng("test", 0))


def kept(part, request, side=SIDE):
    return part.method.kept([request], part.context, side)[0]


@pytest.mark.parametrize("name", EDITING)
def test_a_part_that_is_kept_changes_nothing_else_of_a_request(name):
    _, whole = edit("all", None, name=name)
    part, edited = edit("object", foregrounds((8, 16, 8, 16)), name=name)
    assert part.method.needs_saliency
    assert (edited.keeps, edited.saliency_version) == ("background", "v3")
    plain = {"keeps": "nothing", "mask_growth": 0.0, "saliency_version": None}
    assert replace(edited, **plain) == whole
    assert part.method.refusal(edited, part.context) is None


def test_the_object_is_edited_within_its_widened_mask_or_everything_beside_it():
    """As the published code widens a mask: SciPy's maximum in a window of 16 of 512 px."""
    table = foregrounds((3, 7, 20, 32))
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[6:14, 40:64] = True
    wide = maximum_filter(mask.astype(np.uint8), size=6) > 0
    assert wide.sum() > mask.sum()
    for edits, stays in (("object", ~wide), ("background", wide)):
        part, request = edit(edits, table, mask_growth=6 / SIDE)
        np.testing.assert_array_equal(kept(part, request), stays)


@given(st.integers(0, 40), st.integers(0, 2**32))
def test_a_mask_is_widened_as_by_a_maximum_filter(window, seed):
    mask = np.random.default_rng(seed).random((33, 33)) > 0.98
    expected = maximum_filter(mask.astype(np.uint8), size=max(1, window)) > 0
    np.testing.assert_array_equal(widened(mask, window), expected)


def test_an_image_without_an_object_or_without_a_rest_is_refused():
    table = foregrounds((0, 0, 0, 0), (0, 32, 0, 32))
    for edits, number, reason in (
        ("object", 0, NO_OBJECT),
        ("background", 0, NO_OBJECT),
        ("background", 1, NOTHING_TO_EDIT),
        ("object", 1, None),
    ):
        part, request = edit(edits, table, SOURCES[number])
        assert part.method.refusal(request, part.context) == reason


def test_images_of_all_kinds_may_be_in_one_batch():
    part, request = edit("object", foregrounds((8, 16, 8, 16)))
    requests = [request, replace(request, keeps="nothing"), replace(request, keeps="foreground")]
    found = part.method.kept(requests, part.context, SIDE)
    assert not found[1].any()
    np.testing.assert_array_equal(found[0], ~found[2])


@pytest.mark.parametrize("name", [*BETWEEN, "diff_aug", "real_guidance", "da_fusion", "sgd_mix"])
def test_the_filter_of_the_source_is_a_setting_and_part_of_the_request(name):
    made = [make_method(name, source_filter=kind) for kind in ("bilinear", "bicubic")]
    requests = [method.plan(SOURCES[1], 0, CONTEXT, numpy_rng("test", 1)) for method in made]
    assert [request.source_filter for request in requests] == ["bilinear", "bicubic"]
    assert requests[0].key != requests[1].key


def test_diff_gen_alone_starts_from_noise_and_replays_all_of_the_trajectory():
    plans = {
        name: make_method(name).plan(SOURCES[0], 0, CONTEXT, numpy_rng("test", 0))
        for name in (*WITHIN, *BETWEEN)
    }
    assert plans["diff_gen"].strength == 1
    assert [name for name, plan in plans.items() if plan.starts_from == "noise"] == [
        "diff_gen",
        "real_gen",
    ]


def test_the_real_baselines_take_the_model_as_it_is_and_the_others_do_not():
    taken = {name for name in (*WITHIN, *BETWEEN) if not make_method(name).uses_finetuning}
    assert taken == {"real_gen", "real_guidance", "real_mix"}


def test_both_methods_draw_strength_and_noise_alike_but_share_no_image():
    mixed, kept = (
        make_method(name).plan(SOURCES[0], 0, CONTEXT, numpy_rng("test", 0))
        for name in ("diff_mix", "diff_aug")
    )
    assert (mixed.strength, mixed.noise_seed) == (kept.strength, kept.noise_seed)
    assert mixed.key != kept.key


@given(st.floats(2**-6, 1, width=32), st.floats(0.1, 3))
def test_strength_to_the_gamma_of_the_label_is_the_target_s(strength, gamma):
    request = make_request(source_label=2, target_label=0, strength=strength)
    _, label = make_method(gamma=gamma).compose(_no_source, _IMAGE, request, CONTEXT, RNG)
    expected = [strength**gamma, 0, 1 - strength**gamma, 0]
    np.testing.assert_allclose(label, expected, atol=1e-5)


def test_the_served_image_is_the_generated_one_and_the_source_is_not_read():
    image, _ = make_method().compose(_no_source, _IMAGE, make_request(), CONTEXT, RNG)
    np.testing.assert_array_equal(image, _IMAGE)


def test_diffusion_starts_from_the_source_itself():
    images = np.stack([_IMAGE, _IMAGE + 1])
    requests = [make_request()] * 2
    prepared = make_method().prepare(images, requests, CONTEXT, _no_other_image)
    np.testing.assert_array_equal(prepared, images)


_IMAGE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def _no_source():
    raise AssertionError("the source was read")


def _no_other_image(digest):
    raise AssertionError("another image was read")
