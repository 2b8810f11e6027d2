"""Where memory runs out, the same images come from fewer slots."""

from dataclasses import replace

import pytest
import torch
from request_samples import make_request

from online_aug.config.generation import GenerationConfig
from online_aug.generation import denoising_loop
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.solvers import SOLVERS

SLOTS = 4
REQUESTS = [
    make_request(
        prompt=f"number {n}",
        noise_seed=n,
        num_inference_steps=5,
        strength=0.2 * n,
        scheduler=scheduler,
    )
    for n, scheduler in enumerate(SOLVERS, start=1)
]
IMAGES = torch.randint(
    256, (len(REQUESTS), 3, 64, 64), generator=torch.Generator().manual_seed(1)
).to(torch.uint8)


def generator_of(model, slots=SLOTS):
    return ImageGenerator.load(model, None, GenerationConfig(slots=slots), "float32", "cpu")


class FailsAt:
    """Raises in place of some calls of a function, counted from 1."""

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
    return generator_of(tiny_model).generate(REQUESTS, IMAGES)


STAGES = {
    "prompts": lambda generator: (generator._starter.prompts, "embed"),
    "encoding": lambda generator: (generator._autoencoder, "encode"),
    "denoising": lambda generator: (generator, "_denoiser"),
    "decoding": lambda generator: (generator._autoencoder, "decode"),
    "judging": lambda generator: (generator, "_gate"),
}


def break_stage(generator, stage, *calls):
    owner, name = STAGES[stage](generator)
    failing = FailsAt(getattr(owner, name), *calls)
    setattr(owner, name, failing)
    return failing


@pytest.mark.parametrize("stage", STAGES)
def test_every_image_is_made_with_half_the_slots_and_is_the_same(tiny_model, expected, stage):
    generator = generator_of(tiny_model)
    break_stage(generator, stage, 1)
    made = generator.generate(REQUESTS, IMAGES)
    assert generator.slots == SLOTS // 2
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("call", range(1, 6))
def test_images_go_on_from_the_step_at_which_they_were(tiny_model, expected, call):
    generator = generator_of(tiny_model)
    break_stage(generator, "denoising", call)
    made = generator.generate(REQUESTS, IMAGES)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_noise_that_was_drawn_for_a_step_that_failed_is_used_when_it_is_tried_again(
    tiny_model, monkeypatch
):
    ancestral = [replace(request, scheduler="euler_ancestral") for request in REQUESTS]
    expected = generator_of(tiny_model).generate(ancestral, IMAGES)
    monkeypatch.setattr(denoising_loop, "advance", FailsAt(denoising_loop.advance, 1, 2))
    generator = generator_of(tiny_model)
    made = generator.generate(ancestral, IMAGES)
    assert generator.slots == 1
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_with_one_slot_left_the_error_goes_on(tiny_model, stage):
    generator = generator_of(tiny_model, slots=1)
    break_stage(generator, stage, 1)
    with pytest.raises(torch.OutOfMemoryError):
        generator.generate(REQUESTS, IMAGES)
    generator.close()
