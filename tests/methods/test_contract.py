"""Properties of every method."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from request_samples import (
    CLASSES,
    INSTRUCTIONS,
    digest_of,
    make_context,
    make_method,
    make_sources,
)

from online_aug.methods import METHODS
from online_aug.seeding import numpy_rng

SOURCES = make_sources(8)
CONTEXT = make_context()
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module", params=METHODS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def method(name):
    return make_method(name)


def plan(method, source, seed, variant=0, context=CONTEXT):
    return method.plan(source, variant, context, numpy_rng("test", seed))


def compose(method, request, *, generated=None):
    source = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    generated = np.full((6, 8, 3), 9, np.uint8) if generated is None else generated
    return method.compose(lambda: source, generated, request, CONTEXT, numpy_rng("compose"))


def stock():
    """Grey training images by digest."""
    return {digest_of(n): np.full((7, 7, 3), n, np.uint8) for n in range(12)}


def test_a_method_pickles_to_other_processes(method):
    copied = pickle.loads(pickle.dumps(method))
    assert (type(copied), copied.settings) == (type(method), method.settings)


def test_a_source_is_resized_as_where_the_method_was_published(name, method):
    published = {"diffusemix": "bicubic"}  # Pillow's default; the others ask for bilinear
    request = plan(method, SOURCES[0], 0)
    assert request.source_filter == published.get(name, "bilinear")


@given(seeds, st.integers(0, 7), st.integers(0, 9))
def test_a_plan_is_a_pure_function_of_its_arguments(method, seed, index, variant):
    source = SOURCES[index]
    assert plan(method, source, seed, variant) == plan(method, source, seed, variant)


def test_a_plan_depends_on_chance(method):
    assert len({plan(method, SOURCES[0], seed).key for seed in range(20)}) == 20


@given(seeds, st.integers(0, 7), st.integers(0, 9))
def test_a_request_names_its_method_source_and_variant(name, method, seed, index, variant):
    request = plan(method, SOURCES[index], seed, variant)
    assert (request.method, request.method_version) == (name, method.version)
    assert request.source_digest == SOURCES[index].digest
    assert request.source_label == SOURCES[index].label
    assert request.variant == variant


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("guidance_scale", 4.5),
        ("num_inference_steps", 33),
        ("scheduler", "dpmsolver++"),
        ("resolution", 96),
        ("generator_fingerprint", "f1"),
    ],
)
def test_a_request_carries_the_settings_of_the_recipe(method, setting, value):
    request = plan(method, SOURCES[0], 0, context=make_context(**{setting: value}))
    assert getattr(request, setting) == value


@given(seeds)
def test_a_prompt_is_the_one_of_the_target_class_or_an_instruction(method, seed):
    request = plan(method, SOURCES[1], seed)
    if method.pipeline == "instruct":
        assert request.prompt in INSTRUCTIONS
    else:
        assert request.prompt == CONTEXT.prompts[request.target_label]


def test_strengths_come_from_the_configured_set_and_all_of_it_is_used(method):
    requests = [plan(method, SOURCES[0], seed) for seed in range(100)]
    replays_all = method.pipeline == "instruct" or requests[0].starts_from == "noise"
    drawn = {request.strength for request in requests}
    has_one = replays_all or not method.generates
    assert drawn == ({1.0} if has_one else set(method.settings.strength))


def test_only_an_edit_has_an_image_guidance_scale(method):
    request = plan(method, SOURCES[0], 0)
    assert (request.image_guidance_scale is not None) == (method.pipeline == "instruct")


def test_the_stages_lead_from_the_source_to_what_is_served(method):
    request, rng = plan(method, SOURCES[0], 0), numpy_rng("compose")
    source = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    generated = np.full((6, 8, 3), 9, np.uint8)
    stages = method.stages(source, generated, request, CONTEXT, stock().__getitem__, rng)
    pictures = list(stages.values())
    np.testing.assert_array_equal(pictures[0], source)
    np.testing.assert_array_equal(pictures[-1], compose(method, request)[0])


def test_torch_takes_every_noise_seed(method):
    for seed in range(50):
        torch.Generator().manual_seed(plan(method, SOURCES[0], seed).noise_seed)


@given(seeds)
def test_a_label_is_a_distribution_over_the_classes(method, seed):
    _, label = compose(method, plan(method, SOURCES[2], seed))
    assert label.shape == (CLASSES,)
    assert label.dtype == np.float32
    assert float(label.min()) >= 0
    assert float(label.sum()) == pytest.approx(1, abs=1e-6)


@given(seeds, st.integers(0, CLASSES - 1))
def test_a_label_is_one_hot_if_source_and_target_are_of_one_class(method, seed, label):
    request = next(
        request
        for number in range(200)
        if (request := plan(method, SOURCES[label], seed + number)).target_label == label
    )
    _, soft_label = compose(method, request)
    assert soft_label.tolist() == [float(k == label) for k in range(CLASSES)]


def test_composing_writes_into_no_input(method):
    generated = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    kept = generated.copy()
    source, request = kept[::-1].copy(), plan(method, SOURCES[0], 0)
    method.compose(lambda: source, generated, request, CONTEXT, numpy_rng("a"))
    np.testing.assert_array_equal(generated, kept)
    np.testing.assert_array_equal(source, kept[::-1])


def test_a_composed_image_need_not_be_square(method):
    image, _ = compose(method, plan(method, SOURCES[0], 0), generated=np.zeros((6, 8, 3), np.uint8))
    assert image.shape == (6, 8, 3)
    assert image.dtype == np.uint8


def test_preparing_gives_an_image_a_request_and_writes_into_no_input(method):
    images = np.random.default_rng(0).integers(256, size=(3, 7, 7, 3), dtype=np.uint8)
    kept = images.copy()
    requests = [plan(method, source, 0) for source in SOURCES[:3]]
    others = stock()
    prepared = method.prepare(images, requests, CONTEXT, others.__getitem__)
    assert prepared.shape == images.shape
    np.testing.assert_array_equal(images, kept)
    assert all((others[digest] == image).all() for digest, image in stock().items())


def test_nothing_has_to_stay_unless_the_request_says_so(method):
    requests = [plan(method, source, 0) for source in SOURCES[:3]]
    assert not any(request.keeps != "nothing" for request in requests)
    kept = method.kept(requests, CONTEXT, 32)
    assert kept.shape == (3, 32, 32)
    assert not kept.any()
