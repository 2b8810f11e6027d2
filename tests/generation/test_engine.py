"""Requests to images, compared with diffusers' own pipelines; fewer slots if memory runs out.

Each solver runs on one model, and each model with one solver.
"""

import math
import threading
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import (
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from request_samples import make_request
from stock_diffusers import assert_same_pixels, stock
from tiny_model import copy_with

from online_aug.config.sections import GenerationConfig
from online_aug.diffusion.directory import EMBEDDED, kind_of
from online_aug.diffusion.loading import load_img2img, load_pipeline
from online_aug.errors import UserError
from online_aug.generation import denoising_loop
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.solvers import SOLVERS

pytestmark = pytest.mark.slow
PROMPTS = ["a photo of a bird", "a photo of a thin digit", "snow", "a photo of a bird"]
MIXED = [(0.5, 2.5), (1.0, 7.5), (0.75, 1.0), (0.3, 7.5)]
"""Strength and guidance scale of images in one batch."""
SAME = 1e-5
"""Largest difference of an image from itself in other company, which is rounding."""
CASES = [
    *[("random", scheduler) for scheduler in SOLVERS],
    ("embedded", "dpmsolver++"),
    ("predicts noise", "euler"),
]
"""Each solver on a random model, and each other model with one solver."""


@cache
def pipeline_of(model):
    return load_pipeline(model, "float32", kind_of(model))


def new_generator(model, slots=3):
    return ImageGenerator(pipeline_of(model), slots)


@cache
def generator_of(model):
    """Return one generator of a model for all tests that leave it as it was."""
    return ImageGenerator.load(
        model, None, GenerationConfig(slots=3, resolution=64), "float32", "cpu"
    )


def generator_for(folder_of, model):
    """Return a generator for a test case; only those of random models record their calls."""
    return (generator_of if model.startswith("random") else new_generator)(folder_of[model])


@pytest.fixture
def generator(tiny_model):
    return generator_of(tiny_model)


@pytest.fixture(scope="module")
def predicts_noise(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "epsilon"
    settings = {
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "leading",
    }
    return copy_with(tiny_model, folder, "scheduler", **settings)


@pytest.fixture
def folder_of(tiny_model, tiny_editor, predicts_noise):
    """The directory of a model by the name that test cases give it."""
    return {
        "random": tiny_model,
        "embedded": EMBEDDED["image_to_image"],
        "predicts noise": predicts_noise,
        "random editor": tiny_editor,
        "embedded editor": EMBEDDED["instruct"],
    }


def make_requests(**changes):
    settings = {"num_inference_steps": 4, "strength": 0.75} | changes
    return [make_request(prompt=p, noise_seed=n, **settings) for n, p in enumerate(PROMPTS)]


def mixed_requests(**changes):
    return [
        replace(request, strength=strength, guidance_scale=scale)
        for request, (strength, scale) in zip(make_requests(**changes), MIXED, strict=True)
    ]


def source_images(size=64):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (len(PROMPTS), 3, size, size), generator=rng).to(torch.uint8)


def picture(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("model", "scheduler"), CASES)
def test_images_of_a_batch_are_those_of_diffusers_own_pipeline(folder_of, model, scheduler):
    requests = mixed_requests(scheduler=scheduler, num_inference_steps=7)[:3]
    images = source_images()[:3]
    made = generator_for(folder_of, model).generate(requests, images)
    for request, image, result in zip(requests, images, made, strict=True):
        own = {"image": picture(image), "strength": request.strength}
        if scheduler == "lcm":  # its own pipeline spreads the steps so, but takes no guidance
            steps = math.ceil(request.num_inference_steps * request.strength)
            theirs = LCMScheduler.from_pretrained(folder_of[model], subfolder="scheduler")
            theirs.set_timesteps(steps, strength=request.strength)
            own |= {"strength": 1.0, "timesteps": theirs.timesteps.tolist()}
        expected = stock(StableDiffusionImg2ImgPipeline, folder_of[model], request, **own)
        assert_same_pixels(result, expected)


@pytest.mark.parametrize(("model", "scheduler"), CASES)
def test_images_from_noise_are_those_of_diffusers_own_pipeline(folder_of, model, scheduler):
    requests = mixed_requests(scheduler=scheduler, starts_from="noise")[1:3]
    made = generator_for(folder_of, model).generate(requests, source_images()[1:3])
    for request, result in zip(requests, made, strict=True):
        expected = stock(StableDiffusionPipeline, folder_of[model], request, height=64, width=64)
        assert_same_pixels(result, expected)


def test_a_source_that_no_request_uses_is_not_encoded(tiny_model, monkeypatch):
    pipeline = load_img2img(tiny_model, "float32")
    encoded, encode = [], pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: (encoded.append(x), encode(x))[1])
    requests = mixed_requests(starts_from="noise")
    ImageGenerator(pipeline, slots=2).generate(requests, source_images())
    assert encoded == []
    looking = replace(requests[0], starts_from="image")
    ImageGenerator(pipeline, slots=2).generate([*requests[1:], looking], source_images())
    assert len(encoded) == 1


def blob():
    """Return a mask of a spot that is not in the middle."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return (((y - 25) ** 2 + (x - 40) ** 2) < 15**2).to(torch.uint8) * 255


def generate_around(generator, requests, mask):
    images = torch.cat([source_images(), mask.expand(len(PROMPTS), 1, 64, 64)], dim=1)
    generator.submit(requests, lambda some: images[: len(some)])
    made = {one.request: one.image for one in drain(generator)}
    return [made[request] for request in requests]


@pytest.mark.parametrize(
    ("model", "scheduler"),  # the other solvers draw noise, which diffusers draws in another order
    [*[("random", name) for name in ("dpmsolver++", "ddim", "euler")], ("predicts noise", "ddim")],
)
def test_a_kept_region_is_put_back_as_diffusers_inpainting_does(folder_of, model, scheduler):
    settings = {"scheduler": scheduler, "num_inference_steps": 7, "keeps": "foreground"}
    strengths = (0.5, 0.75, 0.3, 0.9)
    requests = [
        replace(request, strength=strength)
        for request, strength in zip(mixed_requests(**settings), strengths, strict=True)
    ]
    made = generate_around(generator_for(folder_of, model), requests, blob())
    for request, image, result in zip(requests, source_images(), made, strict=True):
        own = {"image": picture(image), "mask_image": Image.fromarray(255 - blob().numpy())}
        own |= {"strength": request.strength, "height": 64, "width": 64}
        expected = stock(StableDiffusionInpaintPipeline, folder_of[model], request, **own)
        assert_same_pixels(result, expected)


def test_an_image_kept_as_a_whole_does_not_depend_on_the_prompt(generator):
    requests = make_requests()
    whole = torch.full((64, 64), 255, dtype=torch.uint8)
    one = generate_around(generator, requests, whole)
    other = generate_around(generator, [replace(r, prompt="snow") for r in requests], whole)
    torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=0, atol=SAME)


def test_an_image_without_anything_to_keep_is_made_as_ever(generator):
    requests, nothing = make_requests(), torch.zeros(64, 64, dtype=torch.uint8)
    made = torch.stack(generate_around(generator, requests, nothing))
    torch.testing.assert_close(
        made, generator.generate(requests, source_images()), rtol=0, atol=SAME
    )


def test_an_image_from_noise_is_the_same_whatever_its_source_and_neighbours(generator):
    start, other = source_images()[:2]
    request = make_request(starts_from="noise", strength=1.0, num_inference_steps=4)
    neighbour = replace(request, starts_from="image")
    made = generator.generate([request, neighbour], torch.stack([start, start]))
    alone = generator.generate([request], other.unsqueeze(0))
    torch.testing.assert_close(made[0], alone[0], rtol=0, atol=SAME)
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_a_model_that_predicts_noise_is_sampled_as_one(predicts_noise, generator):
    requests, images = make_requests(), source_images()
    made = generator_of(predicts_noise).generate(requests, images)[0]
    assert (generator.generate(requests, images)[0] - made).abs().max() > 0.01


def any_requests():
    """Return requests that share only their resolution: solver, strength and steps are mixed."""
    return [
        replace(request, scheduler=scheduler, num_inference_steps=steps)
        for scheduler, steps in zip(SOLVERS, (4, 5, 6, 7, 5, 4), strict=True)
        for request in mixed_requests()[:2]
    ]


@pytest.fixture(scope="module")
def alone(tiny_model):
    """Each of these images made by itself."""
    return [
        generator_of(tiny_model).generate([request], source_images()[place % 2 :][:1])[0]
        for place, request in enumerate(any_requests())
    ]


@hypothesis_settings(max_examples=4)
@given(order=st.permutations(range(12)), count=st.integers(2, 7))
def test_an_image_is_the_same_whatever_its_neighbours_and_their_order(
    tiny_model, alone, order, count
):
    requests, chosen = any_requests(), order[:count]
    images = torch.stack([source_images()[place % 2] for place in chosen])
    made = generator_of(tiny_model).generate([requests[place] for place in chosen], images)
    for place, image in zip(chosen, made, strict=True):
        torch.testing.assert_close(image, alone[place], rtol=0, atol=SAME)


def test_the_number_of_slots_changes_no_pixel_by_a_level(tiny_model, generator):
    requests, images = mixed_requests(), source_images()
    made = new_generator(tiny_model, slots=1).generate(requests, images)
    torch.testing.assert_close(made, generator.generate(requests, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"prompt": "snow"}, {"noise_seed": 99}, {"strength": 0.5}, {"guidance_scale": 9.0}]
)
def test_an_image_depends_on_what_its_request_says(generator, change):
    settings = {"prompt": "a photo of a bird", "num_inference_steps": 4, "strength": 0.75}
    image = source_images()[:1]
    one, other = (
        generator.generate([make_request(**settings | changed)], image) for changed in ({}, change)
    )
    assert (one - other).abs().max() > 1e-4


def test_the_result_has_the_size_of_the_request_whatever_the_source_s(generator):
    made = generator.generate(make_requests(resolution=64), source_images(size=40))
    assert made.shape == (len(PROMPTS), 3, 64, 64)
    assert made.dtype == torch.float32
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


def edit_requests(**changes):
    settings = {"scheduler": "euler_ancestral", "strength": 1.0, "image_guidance_scale": 1.5}
    return make_requests(**settings | changes)


@pytest.mark.parametrize(
    ("model", "scheduler"),
    [*[("random editor", name) for name in SOLVERS], ("embedded editor", "euler_ancestral")],
)
def test_edits_of_a_batch_are_those_of_diffusers_own_pipeline(folder_of, model, scheduler):
    scales = [(4.0, 1.5), (2.5, 1.0), (1.0, 2.0)]
    requests = [
        replace(request, guidance_scale=text, image_guidance_scale=image)
        for request, (text, image) in zip(
            edit_requests(scheduler=scheduler)[:3], scales, strict=True
        )
    ]
    images = source_images()[:3]
    made = generator_for(folder_of, model).generate(requests, images)
    for request, image, result in zip(requests, images, made, strict=True):
        own = {"image": picture(image), "image_guidance_scale": request.image_guidance_scale}
        kind = StableDiffusionInstructPix2PixPipeline
        assert_same_pixels(result, stock(kind, folder_of[model], request, **own))


def test_an_edit_does_not_depend_on_its_batch(tiny_editor):
    editor, requests, images = generator_of(tiny_editor), edit_requests(), source_images()
    together = editor.generate(requests, images)
    assert torch.equal(editor.generate([requests[3]], images[3:])[0], together[3])


@pytest.mark.parametrize(
    "change", [{"prompt": "snow"}, {"noise_seed": 99}, {"image_guidance_scale": 3.0}]
)
def test_an_edit_depends_on_what_its_request_says(tiny_editor, change):
    editor, request = generator_of(tiny_editor), edit_requests()[0]
    one, other = (
        editor.generate([replace(request, **changed)], source_images()[:1])
        for changed in ({}, change)
    )
    assert (one - other).abs().max() > 1e-4


def test_a_request_for_the_other_kind_of_model_is_refused(tiny_editor, generator):
    message = "^image_guidance_scale must be given to an InstructPix2Pix and to no other model"
    with pytest.raises(ValueError, match=f"{message}, got None$"):
        generator_of(tiny_editor).generate(make_requests(), source_images())
    with pytest.raises(ValueError, match=f"{message}, got 1.5$"):
        generator.generate(edit_requests(), source_images())


def test_nan_comes_out_as_nan_and_reaches_no_later_image(tiny_model, generator):
    broken, requests = new_generator(tiny_model, slots=1), make_requests()
    spoiled = broken._autoencoder.encode(source_images()[:1])[0]
    spoiled.mean.fill_(float("nan"))
    made = broken.generate(requests[:2], source_images()[:2])
    assert made[0].isnan().all()
    torch.testing.assert_close(
        made[1], generator.generate(requests[1:2], source_images()[1:2])[0], rtol=0, atol=1e-4
    )


def test_images_of_two_resolutions_cannot_share_the_slots(tiny_model):
    generator = new_generator(tiny_model)
    generator.generate(make_requests()[:1], source_images()[:1])
    message = "^resolution must be the same for all images of one generator, got 32 after 64$"
    with pytest.raises(ValueError, match=message):
        generator.generate(make_requests(resolution=32)[:1], source_images()[:1])
    assert generator.in_flight == 0


def drain(generator):
    """Return everything in flight, in the order in which it comes out."""
    came = []
    while generator.in_flight:
        came += generator.step()
    return came


def test_finished_images_come_out_while_others_are_under_way(tiny_model):
    generator, images = new_generator(tiny_model, slots=2), source_images()
    requests = [replace(request, strength=1.0) for request in make_requests()]
    requests[1] = replace(requests[1], strength=0.25)
    generator.submit(requests, lambda some: images[: len(some)])
    came = [finished.request for finished in drain(generator)]
    assert sorted(came, key=requests.index) == requests


def test_sources_are_prepared_in_a_thread_of_its_own(tiny_model):
    generator, threads = new_generator(tiny_model), []

    def prepare(requests):
        threads.append(threading.current_thread().name)
        return source_images()[: len(requests)]

    generator.submit(make_requests(), prepare)
    drain(generator)
    assert threads[0].startswith("prepare")
    assert generator.times.seconds["prepare"] < generator.times.seconds["denoise"]


def test_an_error_in_preparation_is_raised_by_the_next_step(tiny_model):
    def prepare(_):
        raise UserError("the source is gone")

    generator = new_generator(tiny_model)
    generator.submit(make_requests(), prepare)
    with pytest.raises(UserError, match="^the source is gone$"):
        drain(generator)


def test_there_is_room_for_as_many_as_keep_the_slots_busy(tiny_model):
    generator = new_generator(tiny_model, slots=2)
    room = generator.room
    assert room > generator.slots
    generator.submit(make_requests(), lambda some: source_images()[: len(some)])
    assert generator.room == room - len(PROMPTS)
    generator.close()


OOM_SLOTS = 4
OOM_REQUESTS = [
    make_request(
        prompt=f"number {n}",
        noise_seed=n,
        num_inference_steps=5,
        strength=min(1.0, 0.2 * n),
        scheduler=scheduler,
    )
    for n, scheduler in enumerate(SOLVERS, start=1)
]
OOM_IMAGES = torch.randint(
    256, (len(OOM_REQUESTS), 3, 64, 64), generator=torch.Generator().manual_seed(1)
).to(torch.uint8)


class FailsAt:
    """Raises instead of some calls of a function, counted from 1."""

    def __init__(self, function, *calls):
        self._function, self._failing, self.calls = function, calls, 0

    def __getattr__(self, name):
        return getattr(self._function, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls in self._failing:
            raise torch.OutOfMemoryError("out of memory")
        return self._function(*args, **kwargs)


@pytest.fixture(scope="module")
def expected(tiny_model):
    return new_generator(tiny_model, OOM_SLOTS).generate(OOM_REQUESTS, OOM_IMAGES)


STAGES = {
    "prompts": lambda generator: (generator._starter.prompts, "embed"),
    "denoising": lambda generator: (generator, "_denoiser"),
    "decoding": lambda generator: (generator._autoencoder, "decode"),
}
"""One stage of each thread, and how to reach it in a generator."""


def break_stage(generator, stage, *calls):
    owner, name = STAGES[stage](generator)
    failing = FailsAt(getattr(owner, name), *calls)
    setattr(owner, name, failing)
    return failing


@pytest.mark.parametrize("stage", STAGES)
def test_after_running_out_of_memory_the_same_images_are_made_with_half_the_slots(
    tiny_model, expected, stage
):
    generator = new_generator(tiny_model, OOM_SLOTS)
    break_stage(generator, stage, 1)
    made = generator.generate(OOM_REQUESTS, OOM_IMAGES)
    assert generator.slots == OOM_SLOTS // 2
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("call", [1, 4])
def test_images_go_on_from_the_step_at_which_memory_ran_out(tiny_model, expected, call):
    generator = new_generator(tiny_model, OOM_SLOTS)
    break_stage(generator, "denoising", call)
    made = generator.generate(OOM_REQUESTS, OOM_IMAGES)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_noise_drawn_for_a_failed_step_is_used_when_it_is_tried_again(tiny_model, monkeypatch):
    ancestral = [replace(request, scheduler="euler_ancestral") for request in OOM_REQUESTS]
    expected = new_generator(tiny_model, OOM_SLOTS).generate(ancestral, OOM_IMAGES)
    monkeypatch.setattr(denoising_loop, "advance", FailsAt(denoising_loop.advance, 1, 2))
    generator = new_generator(tiny_model, OOM_SLOTS)
    made = generator.generate(ancestral, OOM_IMAGES)
    assert generator.slots == 1
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_with_one_slot_left_running_out_of_memory_is_an_error(tiny_model, stage):
    generator = new_generator(tiny_model, slots=1)
    break_stage(generator, stage, 1)
    with pytest.raises(torch.OutOfMemoryError):
        generator.generate(OOM_REQUESTS, OOM_IMAGES)
    generator.close()
