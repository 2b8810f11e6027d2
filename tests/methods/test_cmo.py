"""CMO: boxes of rare classes' images, drawn as a pure function of seed, epoch and position."""

import numpy as np
import torch

from online_aug.methods.cmo import RareForegrounds, rare_class_chances

LABELS = np.repeat([0, 1, 2], [90, 9, 1])
SHAPE = (3, 8, 8)


def foregrounds(**changes):
    values = {"chances": rare_class_chances(LABELS), "beta": 1.0, "probability": 0.5}
    values |= {"slots_a_draw": 10, "epochs": range(4, 17), "seed": 0}
    return RareForegrounds(**values | changes)


def test_every_class_comes_up_as_often_whatever_its_size():
    drawn = [foregrounds(probability=1.0).draw(5, slot, SHAPE).number for slot in range(3000)]
    shares = np.bincount(LABELS[drawn]) / 3000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_a_batch_has_one_box_and_the_probability_is_that_of_batches():
    found = [foregrounds().draw(5, slot, SHAPE) for slot in range(1000)]
    batches = [found[at : at + 10] for at in range(0, 1000, 10)]
    boxes = [{one and one[1:] for one in batch} for batch in batches]
    assert all(len(box) == 1 for box in boxes)
    assert 30 < boxes.count({None}) < 70
    assert len({one.number for batch in batches for one in batch if one}) > 5


def test_each_image_can_have_a_box_of_its_own():
    found = [foregrounds(slots_a_draw=1).draw(5, slot, SHAPE) for slot in range(10)]
    assert len({one and one[1:] for one in found}) > 2


def test_nothing_is_put_onto_images_in_the_first_and_the_last_epochs():
    has = {e for e in range(20) if any(foregrounds().draw(e, s, SHAPE) for s in range(100))}
    assert has == set(range(4, 17))


def test_labels_are_mixed_by_the_area_of_the_box():
    black, white = torch.zeros(SHAPE, dtype=torch.uint8), torch.full(SHAPE, 255, dtype=torch.uint8)
    ours, theirs = torch.tensor([0.8, 0.2, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    for slot in range(0, 200, 10):
        pasted = foregrounds(probability=1.0).draw(5, slot, SHAPE)
        image, label = pasted.put_on(black, ours, white, theirs)
        share = (image[0] == 255).float().mean()
        torch.testing.assert_close(label, (1 - share) * ours + share * theirs)
    assert not black.any()
