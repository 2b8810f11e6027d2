"""One slot to one sample: pixels, label, and what happens when something cannot be read."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from mixing_samples import IMAGES, KEYS, PART, PLAN, GreyImages, Setup, damage, put, with_noise
from request_samples import CLASSES, digest_of, make_part

from online_aug.config import Config
from online_aug.data.images import BadImageError
from online_aug.errors import UserError
from online_aug.experiment.images import BoundCompose
from online_aug.labels import one_hot
from online_aug.loader.batch import Sample, SoftLabel, SoftLabels, collate, count_kinds
from online_aug.loader.dataset import foregrounds_of
from online_aug.loader.slots import Kind, Slot
from online_aug.request import Counts, ImportedImage

BETWEEN = next(n for n, r in enumerate(PLAN) if r.source_label != r.target_label)
"""A request whose image lies between two classes."""


class BrokenImages(GreyImages):
    """Images 3 and 4 cannot be decoded."""

    def load(self, index):
        if index in (3, 4):
            raise BadImageError(f"image {index} cannot be read: it is broken")
        return super().load(index)


def slot(index=0, kind=Kind.REAL, number=-1, epoch=0, position=0):
    return Slot(epoch, position, index, kind, number)


def test_a_real_slot_gives_the_image_and_its_one_hot_label(store):
    sample = Setup(store).dataset()[slot(index=6)]
    assert (sample.image == 6).all()
    assert sample.image.shape == (3, 8, 8)
    assert dense(sample.label).tolist() == [0, 0, 1, 0]
    assert sample.kind is Kind.REAL


def test_a_box_of_another_training_image_is_put_onto_any_sample(store):
    config = Config.model_validate({"optim": {"cmo": 1.0}, "run": {"epochs": 20}})
    plain = Setup(store).dataset()
    labels = np.asarray(plain.images.labels)
    mixing = replace(plain, foregrounds=foregrounds_of(config, labels))
    for position in range(0, 640, 64):
        sample = mixing[slot(index=6, epoch=9, position=position)]
        (others, counts) = sample.image[0].unique(return_counts=True)
        shares = dict(zip(others.tolist(), (counts / 64).tolist(), strict=True))
        expected = sum(
            share * one_hot(int(labels[other]), CLASSES) for other, share in shares.items()
        )
        np.testing.assert_allclose(dense(sample.label), expected, atol=1e-6)
        again = mixing[slot(index=6, epoch=9, position=position)]
        assert torch.equal(sample.image, again.image)
    early = mixing[slot(index=6, epoch=3)]
    assert (early.image == 6).all()


@pytest.mark.parametrize("kind", [Kind.FRESH, Kind.CACHED])
def test_a_synthetic_slot_gives_the_generated_image_and_the_label_of_its_request(store, kind):
    put(store, [BETWEEN])
    request = PLAN[BETWEEN]
    sample = Setup(store).dataset()[slot(kind=kind, number=BETWEEN)]
    assert sample.image[:, 0, 0].tolist() == [255, BETWEEN, BETWEEN]
    moved = request.strength**PART.method.settings.gamma
    assert float(dense(sample.label)[request.target_label]) == pytest.approx(moved, abs=1e-6)
    assert float(dense(sample.label)[request.source_label]) == pytest.approx(1 - moved, abs=1e-6)
    assert sample.kind is kind


class TallImages(GreyImages):
    """Images of 20 rows and 6 columns."""

    def load(self, index):
        return np.full((20, 6, 3), index, np.uint8)


@pytest.mark.parametrize(("restores", "size"), [(True, (3, 20, 6)), (False, (3, 8, 8))])
def test_a_generated_image_gets_its_source_s_size_if_the_transform_depends_on_it(
    store, restores, size
):
    put(store, [BETWEEN])
    dataset = replace(Setup(store, images=TallImages()).dataset(), restores_size=restores)
    sample = dataset[slot(kind=Kind.CACHED, number=BETWEEN)]
    assert sample.image.shape == size
    assert sample.image[:, 0, 0].tolist() == [255, BETWEEN, BETWEEN]


def test_an_image_of_unknown_source_keeps_its_size(store):
    put(store, [BETWEEN])
    request = PLAN[BETWEEN]
    unknown = ImportedImage(
        key=request.key,
        method=request.method,
        source_digest=None,
        source_label=request.source_label,
        target_label=request.target_label,
        strength=request.strength,
    )
    dataset = replace(Setup(store, images=TallImages()).dataset(), restores_size=True)
    dataset.plan[BETWEEN] = unknown
    assert dataset[slot(kind=Kind.CACHED, number=BETWEEN)].image.shape == (3, 8, 8)


def dense(label):
    return SoftLabels.of([label]).tensor().to_dense()[0]


class Spy:
    """A composition that shows the source and its chance: red is the source, green a draw."""

    def __call__(self, source, generated, request, rng):
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., 0], image[..., 1] = source()[0, 0, 0], rng.integers(256)
        return image, one_hot(0, CLASSES)


def test_composing_reads_the_source_of_the_request_not_the_image_of_the_slot(store):
    put(store, [BETWEEN])
    dataset = replace(Setup(store).dataset(), compose=Spy())
    place = dataset.places[PLAN[BETWEEN].source_digest]
    other = (place + 1) % IMAGES
    sample = dataset[slot(index=other, kind=Kind.CACHED, number=BETWEEN)]
    assert (sample.image[0] == place).all()


def test_composing_has_a_chance_of_its_own_for_every_epoch_and_position(store):
    put(store, [BETWEEN])
    dataset = replace(Setup(store).dataset(), compose=Spy())

    def drawn(**changes):
        chosen = slot(kind=Kind.CACHED, number=BETWEEN, **changes)
        return int(dataset[chosen].image[1, 0, 0])

    assert drawn(epoch=1, position=2) == drawn(epoch=1, position=2)
    assert len({drawn(epoch=e, position=p) for e in range(3) for p in range(3)}) > 5


def test_an_unreadable_source_is_replaced_by_the_real_image_if_bad_images_are_skipped(store):
    number = next(n for n, r in enumerate(PLAN) if r.source_digest == digest_of(3))
    put(store, [number])
    setup = Setup(store, images=BrokenImages(), skips_bad_images=True)
    chosen = slot(index=7, kind=Kind.CACHED, number=number)
    sample = replace(setup.dataset(), compose=Spy())[chosen]
    assert (sample.image == 7).all()
    assert sample.kind is Kind.STARVED
    strict = replace(setup.dataset(), compose=Spy(), skips_bad_images=False)
    with pytest.raises(BadImageError, match="^image 3 cannot be read"):
        strict[chosen]


def test_labels_are_made_at_read_time_so_one_image_serves_every_gamma(store):
    put(store, [BETWEEN])
    other = replace(
        Setup(store).dataset(), compose=BoundCompose({"diff_mix": make_part(gamma=0.1)})
    )
    labels = [
        dense(dataset[slot(kind=Kind.CACHED, number=BETWEEN)].label)
        for dataset in (Setup(store).dataset(), other)
    ]
    target = PLAN[BETWEEN].target_label
    assert labels[0][target] < labels[1][target]


def test_a_starved_slot_gives_the_real_image(store):
    sample = Setup(store).dataset()[slot(index=2, kind=Kind.STARVED)]
    assert (sample.image == 2).all()
    assert sample.kind is Kind.STARVED


def test_a_record_that_is_gone_is_replaced_by_the_real_image_and_counted(store):
    sample = Setup(store).dataset()[slot(index=2, kind=Kind.FRESH, number=9)]
    assert (sample.image == 2).all()
    assert dense(sample.label).tolist() == [0, 0, 1, 0]
    assert sample.kind is Kind.STARVED


def test_a_corrupt_record_is_replaced_by_the_real_image_counted_and_said(store, caplog):
    put(store, [9])
    damage(store, KEYS[9])
    sample = Setup(store).dataset()[slot(index=2, kind=Kind.CACHED, number=9)]
    assert (sample.image == 2).all()
    assert sample.kind is Kind.STARVED
    assert f"the real one is served: record {KEYS[9].hex()} is corrupt" in caplog.text
    assert store.status([KEYS[9]]) == ["free"]
    assert store.stats()["corrupt"] == 1


def test_a_broken_image_ends_the_run_with_its_name(store):
    with pytest.raises(BadImageError, match="^image 3 cannot be read"):
        Setup(store, images=BrokenImages()).dataset()[slot(index=3)]


def test_a_broken_image_is_replaced_by_the_next_readable_one_if_bad_images_are_skipped(store):
    dataset = Setup(store, images=BrokenImages(), skips_bad_images=True).dataset()
    sample = dataset[slot(index=3)]
    assert (sample.image == 5).all()
    assert dense(sample.label).argmax() == 5 % CLASSES


def test_a_set_without_any_readable_image_is_one_clear_error(store):
    class AllBroken(GreyImages):
        def load(self, index):
            raise BadImageError(f"image {index} cannot be read: it is broken")

    with pytest.raises(BadImageError, match="^no image of the training set can be read$"):
        Setup(store, images=AllBroken(), skips_bad_images=True).dataset()[slot(index=IMAGES - 1)]


def test_a_transform_s_chance_comes_from_epoch_and_position_alone(store):
    put(store, [9])
    dataset = Setup(store, transform=with_noise).dataset()

    def noise(**changes):
        image = dataset[slot(index=0, **changes)].image
        return image.sum().item()

    assert noise(epoch=1, position=2) == noise(epoch=1, position=2)
    assert len({noise(epoch=e, position=p) for e in (0, 1) for p in (0, 1)}) == 4


def test_real_and_synthetic_samples_go_through_one_transform(store):
    put(store, [0])  # its pixels are (255, 0, 0), those of image 0 are (0, 0, 0)
    dataset = Setup(store, transform=with_noise).dataset()
    real, made = dataset[slot(index=0)], dataset[slot(kind=Kind.CACHED, number=0)]
    assert torch.equal(real.image[1:], made.image[1:])


def test_a_dataset_pickles_to_a_worker_and_reads_the_same_there(store):
    put(store, [9])
    dataset = Setup(store).dataset()
    copy = pickle.loads(pickle.dumps(dataset))
    chosen = slot(kind=Kind.CACHED, number=9)
    assert torch.equal(copy[chosen].image, dataset[chosen].image)


def test_a_batch_counts_how_its_slots_were_filled_in_the_end():
    kinds = [Kind.REAL, Kind.FRESH, Kind.STARVED, Kind.REAL, Kind.CACHED, Kind.REAL]
    image, label = torch.zeros(3, 2, 2, dtype=torch.uint8), SoftLabel.of(one_hot(0, 2))
    images, labels, told, refusals = collate([Sample(image, label, kind) for kind in kinds])
    assert count_kinds(told) == Counts(real=3, fresh=1, cached=1, starved=1)
    assert (told, refusals) == (kinds, [])
    assert images.shape == (6, 3, 2, 2)
    assert labels.tensor().to_dense().tolist() == [[1, 0]] * 6


def test_images_of_several_shapes_are_one_clear_error():
    label = SoftLabel.of(one_hot(0, 2))
    samples = [Sample(torch.zeros(3, side, 4), label, Kind.REAL) for side in (4, 6, 4)]
    with pytest.raises(UserError, match=r"^transform must make images of one shape, got .3, 4, 4"):
        collate(samples)
