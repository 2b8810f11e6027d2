from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_samples import digest_of, make_part, make_sources, make_table

from online_aug.methods.foreground_mix import stretched
from online_aug.methods.paste import LARGEST_MASK_PX
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng

COUNT = 12
SOURCES, TABLE = make_sources(COUNT), make_table(COUNT)
places = st.integers(0, COUNT - 1)


def pictures(height, width):
    """A picture of noise for each image of the table, by digest."""
    rng = np.random.default_rng([height, width])
    noise = rng.integers(256, size=(COUNT, height, width, 3), dtype=np.uint8)
    return {digest_of(number): noise[number] for number in range(COUNT)}


def part_of(name="paste", table=TABLE, **settings):
    return make_part(name, saliency=table, **settings)


def pasted(part, place, size=(32, 32), seed=0):
    """Plan and mix one image; return the request, source, background and mix."""
    stock, context = pictures(*size), part.context
    request = part.method.plan(SOURCES[place], 0, context, numpy_rng("test", seed))
    source, background = stock[request.source_digest], stock[request.target_digest]
    mixed = part.method.prepare(source[None], [request], context, stock.__getitem__)[0]
    return request, source, background, mixed


@given(places, st.integers(0, 2**32), st.sampled_from([16, 32, 200, LARGEST_MASK_PX]))
def test_a_hard_seam_gives_the_image_that_sgd_mix_refines(place, seed, side):
    request, source, _, mixed = pasted(part_of(), place, (side, side), seed)
    refined = part_of("sgd_mix")
    same = replace(request, method="sgd_mix", strength=0.5)
    stock = pictures(side, side)
    start = refined.method.prepare(source[None], [same], refined.context, stock.__getitem__)
    np.testing.assert_array_equal(mixed, start[0])


@pytest.mark.parametrize("size", [(40, 24), (24, 40)])
def test_an_image_that_is_not_square_gets_the_mask_stretched(size):
    request, source, background, mixed = pasted(part_of(), 3, size)
    pair = [request.source_digest, request.target_digest]
    mask = stretched(TABLE.masks(pair, 40).any(0)[None], size)[0]
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(mixed, np.where(mask[..., None], source, background))


def test_stretching_takes_the_pixel_at_the_centre():
    square = np.arange(16).reshape(1, 4, 4)
    assert stretched(square, (2, 4)).tolist() == [[[4, 5, 6, 7], [12, 13, 14, 15]]]
    assert stretched(square, (4, 4)) is square
    enlarged = cv2.resize(square[0].astype(np.uint8), (8, 8), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(stretched(square, (8, 8))[0], enlarged)


@given(places, st.floats(0.05, 0.5))
def test_a_feathered_seam_lies_outside_the_mask(place, feather):
    request, source, background, mixed = pasted(part_of(feather=feather), place, (40, 40))
    _, _, _, hard = pasted(part_of(), place, (40, 40))
    pair = [request.source_digest, request.target_digest]
    mask = TABLE.masks(pair, 40).any(0)
    width = 2 * round(feather * 20)
    near = cv2.dilate(mask.view(np.uint8), np.ones((2 * width + 1, 2 * width + 1))).astype(bool)
    np.testing.assert_array_equal(mixed[mask], source[mask])
    np.testing.assert_array_equal(mixed[~near], background[~near])
    low, high = np.minimum(source, background), np.maximum(source, background)
    assert ((low <= mixed) & (mixed <= high)).all()
    assert (mixed != hard).any()


def test_the_seam_falls_in_a_straight_line():
    table = SaliencyTable.from_maps("v2", {digest_of(n): half_map() for n in range(COUNT)})
    part = part_of(table=table, feather=0.25, max_union_share=1.0)
    request = part.method.plan(SOURCES[0], 0, part.context, numpy_rng("test"))
    white, black = (np.full((40, 40, 3), level, np.uint8) for level in (255, 0))
    (mixed,) = part.method.prepare(white[None], [request], part.context, lambda digest: black)
    row = mixed[20, :, 0].astype(int)
    edge = int(np.flatnonzero(row < 255)[0]) - 1
    steps = np.diff(row[edge : edge + 12])
    assert set(row[:edge]) == {255}
    assert steps[:10].tolist() == pytest.approx([-255 / 11] * 10, abs=1)
    assert row[-1] == 0


def half_map():
    values = np.zeros((40, 40))
    values[:, :16] = 1
    return values


def test_mixing_writes_into_neither_image():
    stock = pictures(32, 32)
    kept = {digest: picture.copy() for digest, picture in stock.items()}
    part = part_of(feather=0.2)
    request = part.method.plan(SOURCES[0], 0, part.context, numpy_rng("test"))
    source = stock[request.source_digest]
    part.method.prepare(source[None], [request], part.context, stock.__getitem__)
    assert all((stock[digest] == picture).all() for digest, picture in kept.items())


def test_the_stages_end_with_the_mix():
    part, stock = part_of(), pictures(24, 40)
    request, source, background, mixed = pasted(part, 5, (24, 40))
    rng = numpy_rng("stages")
    stages = part.method.stages(source, mixed, request, part.context, stock.__getitem__, rng)
    assert list(stages) == ["source", "saliency", "mask", "target", "mixed"]
    np.testing.assert_array_equal(stages["target"], background)
    np.testing.assert_array_equal(
        stages["mixed"], np.where(stages["mask"] == 255, source, background)
    )


def test_pictures_may_have_any_layout_in_memory():
    part, stock = part_of(), pictures(24, 40)
    request, source, _, mixed = pasted(part, 5, (24, 40))
    planes = {digest: np.asfortranarray(picture) for digest, picture in stock.items()}
    (other,) = part.method.prepare(
        np.asfortranarray(source)[None], [request], part.context, planes.__getitem__
    )
    np.testing.assert_array_equal(other, mixed)
