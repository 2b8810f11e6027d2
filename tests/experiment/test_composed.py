"""Samples composed of training images, by paste and by a method of a user's own."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from request_samples import digest_of, make_context, make_part, make_sources, make_table

from online_aug.experiment.images import ComposedSamples
from online_aug.labels import one_hot
from online_aug.methods import METHODS, Method, MethodSettings, Part
from online_aug.methods.foreground_mix import SOURCE_TOO_SMALL
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng

COUNT = 12
SIZES = [(20, 30), (30, 20), (24, 24)]


class Noise:
    """A set in memory with images of three sizes."""

    labels = np.arange(COUNT) % 4
    class_names = tuple("abcd")

    def __len__(self):
        return COUNT

    def load(self, index):
        shape = (*SIZES[index % 3], 3)
        return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)

    def digest(self, index):
        return digest_of(index)


class Halves(Method):
    """A user's own: the left half of an image beside the right half of another."""

    generates = False

    def plan(self, source, variant, context, rng):
        others = [
            digest_of(number) for number in range(COUNT) if digest_of(number) != source.digest
        ]
        other = others[int(rng.integers(len(others)))]
        return replace(self.request(source, variant, context, rng), target_digest=other)

    def prepare(self, images, requests, context, image_of):
        mixed = np.stack([image_of(request.target_digest) for request in requests])
        middle = images.shape[2] // 2
        mixed[:, :, :middle] = images[:, :, :middle]
        return mixed

    def compose(self, source, generated, request, context, rng):
        return generated, one_hot(request.source_label, context.num_classes)


HALVES = Part(method=Halves(MethodSettings(name="halves", weight=3)), context=make_context())


def samples_of(*parts, **changes):
    places = {digest_of(number): number for number in range(COUNT)}
    sources = make_sources(COUNT)
    return ComposedSamples(images=Noise(), sources=sources, places=places, parts=parts, **changes)


def paste(table=None, **settings):
    return make_part("paste", saliency=table or make_table(COUNT), **settings)


@pytest.mark.parametrize("index", range(3))
def test_a_sample_has_the_size_and_the_label_of_its_source(index):
    samples = samples_of(paste())
    image, label = samples(index, numpy_rng("a"))
    assert image.shape == (*SIZES[index], 3)
    assert label.tolist() == one_hot(index % 4, 4).tolist()


def test_a_sample_is_a_pure_function_of_image_and_chance():
    first, again = samples_of(paste()), samples_of(paste())
    made = [first(3, numpy_rng("a", seed))[0] for seed in range(10)]
    for seed in reversed(range(10)):
        np.testing.assert_array_equal(again(3, numpy_rng("a", seed))[0], made[seed])
    assert len({image.tobytes() for image in made}) > 1


def test_a_method_of_a_user_s_own_composes_by_the_same_attribute():
    image, label = samples_of(HALVES)(0, numpy_rng("a"))
    source = Noise().load(0)
    np.testing.assert_array_equal(image[:, :15], source[:, :15])
    assert (image[:, 15:] != source[:, 15:]).any()
    assert label.argmax() == 0


def test_methods_are_drawn_by_their_weights():
    samples = samples_of(paste(), HALVES)
    found = Counter(samples.plan(0, numpy_rng("a", n))[0].method.name for n in range(400))
    assert found["halves"] == pytest.approx(300, abs=40)
    assert found["paste"] == 400 - found["halves"]


def test_any_image_may_be_the_source_if_the_whole_pool_is_served():
    samples = samples_of(paste(), draws_source=True)
    found = {samples.plan(0, numpy_rng("a", n))[1].source_digest for n in range(200)}
    assert found == {digest_of(number) for number in range(COUNT)}


def test_refused_images_are_told_with_the_reason():
    rng = np.random.default_rng(0)
    maps = {digest_of(n): np.zeros((8, 8)) if n < 4 else rng.random((8, 8)) for n in range(COUNT)}
    table = SaliencyTable.from_maps("v2", maps)
    samples = samples_of(paste(table, max_union_share=1.0))
    assert samples(0, numpy_rng("a")) == SOURCE_TOO_SMALL
    assert samples.describe_refusals() == (
        f"paste: 4 of {COUNT} images are served as they are: 4 {SOURCE_TOO_SMALL}"
    )
    every = samples_of(HALVES).describe_refusals()
    assert every == f"halves: every image can be composed ({COUNT} tried)"


def test_only_paste_of_our_methods_needs_no_generator():
    assert [name for name, method in METHODS.items() if not method.generates] == ["paste"]
