"""Guidance in one call of the network; plain, recorded and compiled calls."""

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from request_samples import make_request

from online_aug.diffusion.loading import load_pipeline
from online_aug.generation.denoiser import Conditions, Denoiser, Network, chosen_execution, guide
from online_aug.generation.engine import ImageGenerator
from online_aug.generation.solvers import sampling_scheduler
from tools.embedded_model import architecture

scales = st.floats(1.01, 20)
few_examples = settings(max_examples=10)


def predictions(count, slots=2):
    return torch.randn(count, slots, 1, 2, 2, generator=torch.Generator().manual_seed(count))


@few_examples
@given(scale=scales)
def test_guidance_leads_away_from_the_empty_prompt(scale):
    with_prompt, without = predictions(2)
    guided = guide((with_prompt, without), torch.full((2,), scale), torch.ones(2))
    for place in range(with_prompt.numel()):
        t, n = with_prompt.flatten()[place], without.flatten()[place]
        torch.testing.assert_close(guided.flatten()[place], n + scale * (t - n))


@few_examples
@given(text=scales, image=st.floats(1, 5))
def test_an_edit_is_led_by_prompt_and_source_each_with_its_scale(text, image):
    both, source_only, nothing = predictions(3)
    guided = guide((both, source_only, nothing), torch.full((2,), text), torch.full((2,), image))
    for place in range(both.numel()):
        b, s, n = (each.flatten()[place] for each in (both, source_only, nothing))
        torch.testing.assert_close(
            guided.flatten()[place], n + image * (s - n) + text * (b - s), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("count", [2, 3])
def test_an_image_at_scale_one_is_left_as_predicted_beside_a_guided_one(count):
    predicted = predictions(count)
    guided = guide(tuple(predicted), torch.tensor([1.0, 7.5]), torch.tensor([1.5, 1.5]))
    assert torch.equal(guided[0], predicted[0][0])
    assert not torch.allclose(guided[1], predicted[0][1])


@pytest.mark.parametrize(("kind", "copies"), [("image_to_image", 2), ("instruct", 3)])
def test_guidance_takes_more_rows_of_the_same_call(tiny_model, tiny_editor, kind, copies):
    pipeline = load_pipeline(
        tiny_model if kind == "image_to_image" else tiny_editor, "float32", kind
    )
    rows = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    denoiser = Denoiser(pipeline, torch.zeros(48, 128))
    latents = torch.randn(3, 4, 16, 16)
    given_ = Conditions(
        torch.randn(3, 48, 128),
        latents if kind == "instruct" else None,
        torch.full((3,), 4.0),
        torch.full((3,), 1.5),
    )
    with torch.no_grad():
        for is_guided in (True, False):
            denoiser(latents, torch.full((3,), 500.0), given_, is_guided=is_guided)
    assert rows == [3 * copies, 3]


@pytest.mark.slow
def test_a_distilled_model_reads_its_guidance_scale_itself(tiny_model, tmp_path):
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = dict(architecture.new_unet().config) | {"time_cond_proj_dim": 16}
        pipeline.unet = UNet2DConditionModel.from_config(config)
    pipeline.scheduler = sampling_scheduler("lcm", pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "distilled")
    pipeline.set_progress_bar_config(disable=True)
    generator = ImageGenerator(
        load_pipeline(tmp_path / "distilled", "float32", "image_to_image"),
        slots=2,
        execution="graph",
    )
    requests = [
        make_request(scheduler="lcm", num_inference_steps=4, strength=0.5, guidance_scale=scale)
        for scale in (1.5, 8.0)
    ]
    pixels = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    made = generator.generate(requests, pixels.expand(2, -1, -1, -1))
    assert (made[0] - made[1]).abs().max() > 1e-3
    for request, image in zip(requests, made, strict=True):
        expected = pipeline(
            prompt=request.prompt,
            image=Image.fromarray(pixels.permute(1, 2, 0).numpy()),
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.noise_seed),
            output_type="pt",
        ).images[0]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
        ).eval()


def inputs(count):
    rng = torch.Generator().manual_seed(count)
    return (
        torch.randn(count, 4, 8, 8, generator=rng),
        torch.arange(count) * 100.0,
        torch.randn(count, 5, 16, generator=rng),
        None,
    )


def test_a_recorded_call_predicts_what_the_plain_one_does_at_every_shape_and_time(unet):
    plain, recorded = Network(unet, "eager"), Network(unet, "graph")
    for count in (1, 3, 1, 3, 3):  # a recording is optimised in its first calls
        torch.testing.assert_close(recorded(*inputs(count)), plain(*inputs(count)))


def test_a_recorded_call_reads_all_of_its_inputs(unet):
    recorded = Network(unet, "graph")
    latents, times, prompts, _ = inputs(2)
    before = recorded(latents, times, prompts, None)
    for changed in (
        (latents + 1, times, prompts),
        (latents, times + 300, prompts),
        (latents, times, prompts + 1),
    ):
        assert (recorded(*changed, None) - before).abs().max() > 1e-4


def test_a_shape_is_recorded_once(unet, monkeypatch):
    calls = []
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *a, **k: calls.append(a) or trace(*a, **k))
    recorded = Network(unet, "graph")
    for count in (1, 2, 1, 2):
        recorded(*inputs(count))
    assert len(calls) == 2
    recorded.forget_recordings()
    recorded(*inputs(1))
    assert len(calls) == 3


def test_compiling_hands_the_whole_network_at_static_shapes_to_torch(unet, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda m, **how: asked.append(how) or m)
    Network(unet, "compile")(*inputs(2))
    assert asked == [{"dynamic": False}]


@pytest.mark.parametrize(
    ("wanted", "device", "chosen"),
    [
        ("auto", "cpu", "graph"),
        ("auto", "cuda", "eager"),
        ("eager", "cpu", "eager"),
        ("compile", "cuda", "compile"),
        ("graph", "cuda", "graph"),
    ],
)
def test_a_cpu_records_unless_told_otherwise(wanted, device, chosen):
    assert chosen_execution(wanted, torch.device(device)) == chosen
