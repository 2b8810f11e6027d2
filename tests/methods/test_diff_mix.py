import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_samples import CLASSES, make_context, make_method, make_request, make_sources

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
