"""Requests to images, held against diffusers' own pipeline."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from PIL import Image
from request_samples import make_request
from tiny_model import copy_with

from online_aug.config import GenerationConfig
from online_aug.generation.identity import EMBEDDED
from online_aug.generation.image_generator import ImageGenerator, fit, group_of

PROMPTS = ["a photo of a bird", "a photo of a thin digit", "snow", "a photo of a bird"]
SOLVERS = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}


def generator_of(model):
    return ImageGenerator.load(model, None, GenerationConfig(), "float32", "cpu")


@pytest.fixture(scope="module")
def generator(tiny_model):
    return generator_of(tiny_model)


@pytest.fixture(scope="module")
def predicts_noise(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "epsilon"
    return copy_with(tiny_model, folder, "scheduler", prediction_type="epsilon")


def make_requests(**changes):
    settings = {"num_inference_steps": 4, "strength": 0.75} | changes
    return [make_request(prompt=p, noise_seed=n, **settings) for n, p in enumerate(PROMPTS)]


def source_images(size=64):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (len(PROMPTS), 3, size, size), generator=rng).to(torch.uint8)


def stock(model, request, image):
    """What a user of diffusers gets for the same settings."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SOLVERS[request.scheduler].from_config(pipeline.scheduler.config)
    return pipeline(
        prompt=request.prompt,
        image=Image.fromarray(image.permute(1, 2, 0).numpy()),
        strength=request.strength,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.noise_seed),
        output_type="pt",
    ).images[0]


@pytest.mark.parametrize("scheduler", SOLVERS)
@pytest.mark.parametrize(("strength", "guidance_scale"), [(0.5, 2.5), (1.0, 7.5), (0.75, 1.0)])
def test_an_image_is_the_one_of_diffusers_own_pipeline(
    tiny_model, generator, scheduler, strength, guidance_scale
):
    requests = make_requests(scheduler=scheduler, strength=strength, guidance_scale=guidance_scale)
    images = source_images()
    made = generator.generate(requests, images)
    for index in (0, 1):
        expected = stock(tiny_model, requests[index], images[index])
        torch.testing.assert_close(made[index], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_a_model_that_predicts_noise_is_sampled_as_one(predicts_noise, generator, scheduler):
    requests, images = make_requests(scheduler=scheduler), source_images()
    made = generator_of(predicts_noise).generate(requests, images)[0]
    expected = stock(predicts_noise, requests[0], images[0])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)
    assert (generator.generate(requests, images)[0] - made).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(generator, scheduler):
    requests, images = make_requests(scheduler=scheduler), source_images()
    together = generator.generate(requests, images)
    backwards = generator.generate(requests[::-1], images.flip(0)).flip(0)
    alone = [generator.generate([requests[i]], images[i : i + 1])[0] for i in (0, 3)]
    assert torch.equal(backwards, together)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[3])


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


def stock_edit(model, request, image):
    """What a user of diffusers' InstructPix2Pix gets for the same settings."""
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    known = pipeline.scheduler.config
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(known)
    return pipeline(
        prompt=request.prompt,
        image=Image.fromarray(image.permute(1, 2, 0).numpy()),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        image_guidance_scale=request.image_guidance_scale,
        generator=torch.Generator().manual_seed(request.noise_seed),
        output_type="pt",
    ).images[0]


@pytest.fixture(scope="module", params=["random", "embedded"])
def editor_model(request, tiny_editor):
    return tiny_editor if request.param == "random" else EMBEDDED["instruct"]


@pytest.mark.parametrize(("text_scale", "image_scale"), [(4.0, 1.5), (2.5, 1.0)])
def test_an_edit_is_the_one_of_diffusers_own_pipeline(editor_model, text_scale, image_scale):
    requests = edit_requests(guidance_scale=text_scale, image_guidance_scale=image_scale)
    images = source_images()
    made = generator_of(editor_model).generate(requests, images)
    for index in (0, 2):
        expected = stock_edit(editor_model, requests[index], images[index])
        torch.testing.assert_close(made[index], expected, rtol=0, atol=1e-3)


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


def test_requests_of_several_groups_are_refused(generator):
    requests = [make_request(strength=0.5), make_request(strength=0.7)]
    with pytest.raises(ValueError, match="^requests must be of one group, got 2$"):
        generator.generate(requests, source_images()[:2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strength", 0.9),
        ("guidance_scale", 3.0),
        ("image_guidance_scale", 1.5),
        ("num_inference_steps", 7),
        ("scheduler", "dpmsolver++"),
        ("resolution", 96),
    ],
)
def test_what_a_pipeline_call_shares_makes_a_group(field, value):
    assert group_of(make_request(**{field: value})) != group_of(make_request())


@pytest.mark.parametrize(
    ("field", "value"), [("prompt", "snow"), ("noise_seed", 1), ("source_label", 3), ("variant", 2)]
)
def test_what_differs_from_image_to_image_makes_no_group(field, value):
    assert group_of(make_request(**{field: value})) == group_of(make_request())


def test_numbers_that_are_none_come_out_as_such(tiny_model):
    broken = generator_of(tiny_model)
    with torch.no_grad():
        broken._pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    assert broken.generate(make_requests()[:1], source_images()[:1]).isnan().all()


def test_an_image_that_fits_is_left_alone():
    image = source_images()[0]
    assert fit(image, 64) is image


@pytest.mark.parametrize("shape", [(3, 40, 40), (3, 31, 97), (3, 128, 64)])
def test_any_other_becomes_a_square_of_bytes(shape):
    image = torch.randint(256, shape, dtype=torch.uint8)
    assert fit(image, 64).shape == (3, 64, 64)
    assert fit(image, 64).dtype == torch.uint8
