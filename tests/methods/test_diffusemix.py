"""DiffuseMix and its masks against the paper's equations, worked out pixel by pixel."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from request_samples import CLASSES, INSTRUCTIONS, make_part, make_sources

from online_aug.config import Config
from online_aug.data.pocket_birds import random_scene, random_species, render
from online_aug.methods import make_method
from online_aug.methods.diffusemix import MASKS, DiffuseMixSettings, source_share
from online_aug.saliency import SaliencyTable
from online_aug.seeding import numpy_rng

SOURCE = make_sources(CLASSES)[2]
DEFAULTS = DiffuseMixSettings(name="diffusemix")


def part_of(**changes):
    return make_part("diffusemix", **changes)


def noise(height, width, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def plan(seed=0, variant=0, **changes):
    part = part_of(**changes)
    return part.method.plan(SOURCE, variant, part.context, numpy_rng("test", seed))


def stages(source, generated, seed=0, **changes):
    part, rng = part_of(**changes), numpy_rng("test", seed)
    return part.method.stages(source, generated, plan(), part.context, no_other_image, rng)


def no_other_image(digest):
    raise AssertionError("another image was read")


def mask_of(picture):
    """Return the name of the hard mask that a picture shows."""
    share = picture[..., 0] / 255
    found = [name for name in MASKS if (source_share(name, *share.shape, seam=0) == share).all()]
    return found[0]


@pytest.mark.parametrize("seam", [0.0, 0.3])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 12), (1, 3)])
@pytest.mark.parametrize("mask", MASKS)
def test_the_result_is_the_paper_s_equation_pixel_by_pixel(mask, size, seam):
    source, generated, fractal = (noise(*size, seed) for seed in range(3))
    keys = {"masks": (mask,), "seam": seam, "resources": [fractal], "fractal_weight": 0.2}
    final = stages(source, generated, **keys)["final"]
    share = source_share(mask, *size, seam=seam)
    for row in range(size[0]):
        for column in range(size[1]):
            part = float(share[row, column])
            for c in range(3):
                place = (row, column, c)
                hybrid = part * source[place] + (1 - part) * generated[place]
                exact = 0.8 * hybrid + 0.2 * fractal[place]
                assert abs(float(final[place]) - exact) <= 0.5 + 1e-3


def test_every_mask_occurs_equally_often():
    image = noise(8, 8, 0)
    counts = Counter(mask_of(stages(image, image, seed)["mask"]) for seed in range(400))
    assert set(counts) == set(DEFAULTS.masks)
    assert max(abs(count - 100) for count in counts.values()) < 5 * np.sqrt(100 * 0.75)


def test_mask_and_fractal_are_drawn_apart():
    fractals = [np.full((8, 8, 3), number, np.uint8) for number in range(2)]
    image = noise(8, 8, 0)
    drawn = (stages(image, image, seed, resources=fractals) for seed in range(200))
    pairs = Counter((mask_of(made["mask"]), made["fractal"][0, 0, 0]) for made in drawn)
    assert len(pairs) == len(DEFAULTS.masks) * 2


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_the_result_has_the_size_of_the_source_whatever_that_of_the_others(height, width, side):
    made = stages(noise(height, width, 0), noise(side, side, 1), resources=[noise(5, 5, 2)])
    for picture in made.values():
        assert (picture.shape, picture.dtype) == ((height, width, 3), np.uint8)


def test_without_a_fractal_the_real_half_is_untouched():
    source, generated = noise(9, 9, 0), noise(9, 9, 1)
    made = stages(source, generated, fractal_weight=0.0, masks=("left",))
    np.testing.assert_array_equal(made["final"][:, :4], source[:, :4])
    np.testing.assert_array_equal(made["final"][:, 4:], generated[:, 4:])


def test_a_flat_image_stays_as_bright_as_it_is():
    flat = np.full((8, 8, 3), 101, np.uint8)
    assert (stages(flat, flat, resources=[flat], fractal_weight=0.3)["final"] == 101).all()


def test_composing_is_a_function_of_its_chance():
    source, generated = noise(8, 8, 0), noise(8, 8, 1)

    def final(seed):
        part, rng = part_of(), numpy_rng("compose", 0, seed, 3)
        return part.method.compose(lambda: source, generated, plan(), part.context, rng)[0]

    np.testing.assert_array_equal(final(1), final(1))
    assert len({final(seed).tobytes() for seed in range(20)}) > 4


def test_the_label_is_the_source_s_alone():
    image = noise(8, 8, 0)
    part, rng = part_of(), numpy_rng("test", 0)
    _, label = part.method.compose(lambda: image, image, plan(), part.context, rng)
    assert label.tolist() == [0, 0, 1, 0]


def test_random_prompts_are_drawn_equally_often():
    counts = Counter(plan(seed).prompt for seed in range(900))
    assert set(counts) == set(INSTRUCTIONS)
    mean = 900 / len(INSTRUCTIONS)
    assert max(abs(count - mean) for count in counts.values()) < 5 * np.sqrt(mean)


def test_all_prompts_come_in_turn():
    prompts = [plan(variant=variant, prompt_choice="all").prompt for variant in range(6)]
    assert prompts == list(INSTRUCTIONS) * 2


def test_both_ways_to_choose_a_prompt_make_the_same_image_of_the_same_prompt():
    drawn = {request.prompt: request for seed in range(9) if (request := plan(seed))}
    turned = {plan(seed, prompt_choice="all").noise_seed: seed for seed in range(9)}
    assert all(request.noise_seed in turned for request in drawn.values())


@pytest.mark.parametrize("change", [{"seam": 0.2}, {"masks": ("rim",)}, {"fractal_weight": 0.5}])
def test_settings_of_composing_ask_for_the_same_image(change):
    assert plan(**change).key == plan().key


def test_image_guidance_is_part_of_the_request():
    assert plan(image_guidance_scale=2.0).image_guidance_scale == 2.0
    assert plan(image_guidance_scale=2.0).key != plan().key


def test_the_paper_s_nine_prompts_and_template_are_the_defaults():
    assert len(set(DEFAULTS.prompts)) == 9
    assert DEFAULTS.template == "A transformed version of image into {prompt}"
    assert DEFAULTS.masks == ("left", "right", "top", "bottom")
    assert (DEFAULTS.seam, DEFAULTS.fractal_weight) == (0.0, 0.2)
    assert DEFAULTS.prompt_choice == "random"


sides = st.integers(1, 40)


def inside(mask, row, column, height, width):
    """Return the signed distance of a pixel's centre to the border of a mask."""
    y, x = (row + 0.5) / height, (column + 0.5) / width
    disc = (1 / (2 * np.pi)) ** 0.5 - ((y - 0.5) ** 2 + (x - 0.5) ** 2) ** 0.5
    return {
        "left": 0.5 - x,
        "right": x - 0.5,
        "top": 0.5 - y,
        "bottom": y - 0.5,
        "centre": disc,
        "rim": -disc,
    }[mask]


@pytest.mark.parametrize("mask", MASKS)
@settings(max_examples=15)  # each goes through all pixels
@given(sides, sides, st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_a_mask_is_the_one_worked_out_pixel_by_pixel(mask, height, width, seam):
    share = source_share(mask, height, width, seam=seam)
    expected = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            distance = inside(mask, row, column, height, width)
            takes_border = mask in ("right", "bottom", "rim")
            hard = float(distance > 0 or (takes_border and distance == 0))
            expected[row, column] = min(max(0.5 + distance / seam, 0), 1) if seam else hard
    np.testing.assert_allclose(share, expected, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@given(sides, sides)
def test_a_hard_seam_makes_every_pixel_the_one_or_the_other(mask, height, width):
    assert set(np.unique(source_share(mask, height, width, seam=0))) <= {0.0, 1.0}


@pytest.mark.parametrize(("mask", "other"), [("left", "right"), ("top", "bottom")])
@given(sides, sides)
def test_two_halves_share_no_pixel_and_leave_none_out(mask, other, height, width):
    both = source_share(mask, height, width, seam=0) + source_share(other, height, width, seam=0)
    assert (both == 1).all()


def test_the_middle_column_of_an_odd_width_belongs_to_the_right_half():
    assert source_share("left", 1, 5, seam=0)[0].tolist() == [1, 1, 0, 0, 0]


def test_without_masks_and_fractals_the_edit_alone_is_served():
    source, generated = noise(9, 7, 0), noise(9, 7, 1)
    part = part_of(masks=("none",), fractal_weight=0, resources=None)
    final, _ = part.method.compose(
        lambda: source, generated, plan(), part.context, numpy_rng("test")
    )
    np.testing.assert_array_equal(final, generated)
    made = stages(source, generated, masks=("none",), fractal_weight=0, resources=None)
    assert "fractal" not in made
    assert not made["mask"].any()


def test_no_fractals_are_made_if_none_are_blended_in():
    method = {"name": "diffusemix", "fractal_weight": 0}
    config = Config.model_validate({"method": method, "generation": {"resolution": 64}})
    assert make_method(config.methods[0]).resources(config) is None


@pytest.mark.parametrize("mask", MASKS)
def test_half_of_the_image_is_real(mask):
    for seam in (0.0, 0.2):
        assert source_share(mask, 200, 300, seam=seam).mean() == pytest.approx(
            0.5, abs=0.02
        )  # a soft disc a little more


@pytest.mark.parametrize(
    ("mask", "other"), [("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")]
)
def test_a_half_is_where_its_name_says(mask, other):
    share = source_share(mask, 8, 8, seam=0)
    ends = {"left": share[:, 0], "right": share[:, -1], "top": share[0], "bottom": share[-1]}
    assert ends[mask].all()
    assert not ends[other].any()


@pytest.mark.parametrize("size", [32, 64, 333])
def test_a_seam_grows_with_the_image(size):
    share = source_share("left", size, size, seam=0.25)[0]
    assert ((share > 0) & (share < 1)).mean() == pytest.approx(0.25, abs=2 / size)


def real_shares(images, *, keeps_object):
    """Return the share of each object that the real part of the result shows, over some draws."""
    rng = np.random.default_rng(5)
    sources, masks = make_sources(images), {}
    for source in sources:
        species, scene = random_species(rng), random_scene(rng)
        masks[source.digest] = render(species, scene)[1] > 0
    maps = {digest: mask.astype(np.float32) for digest, mask in masks.items()}
    part = part_of(
        saliency=SaliencyTable.from_maps("v", maps), keeps_object=keeps_object, fractal_weight=0
    )
    dark, light = (np.full((64, 64, 3), value, np.uint8) for value in (0, 255))
    shares = []
    for source in sources:
        request = part.method.plan(source, 0, part.context, rng)
        for draw in range(8):
            chance = numpy_rng("compose", draw)
            image, _ = part.method.compose(lambda: light, dark, request, part.context, chance)
            shares.append(image[masks[source.digest], 0].mean() / 255)
    return np.array(shares)


def test_the_object_is_kept_on_the_real_side_if_that_is_asked_for():
    blind, kept = (real_shares(10, keeps_object=keeps) for keeps in (False, True))
    assert (kept >= np.maximum(blind, 1 - blind) - 1e-6).all()
    assert kept.min() >= 0.5
    assert kept.mean() > blind.mean() + 0.05


def test_keeping_the_object_needs_no_other_edit():
    assert plan(keeps_object=True) == plan()


def test_keeping_the_object_without_maps_is_an_error():
    part = part_of(keeps_object=True, saliency=None)
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="must be a table for method.keeps_object, got None"):
        part.method.compose(lambda: image, image, plan(), part.context, numpy_rng("c"))
