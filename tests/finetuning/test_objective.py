"""Parts of one step: images drawn, latents, noise, loss."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr
from finetuning_samples import examples
from hypothesis import given
from hypothesis import strategies as st

from online_aug.data.transforms import resize_shortest
from online_aug.diffusion.loading import load_img2img, training_scheduler
from online_aug.distributed.world import World
from online_aug.finetuning.objective import (
    Draw,
    Examples,
    Latents,
    RandomSquare,
    Sampler,
    denoising_loss,
    draw_corruption,
    min_snr_weights,
)
from online_aug.seeding import numpy_rng, torch_rng

LONG_TAIL = (0,) * 8 + (1,) * 4 + (2,) * 2


def drawn(count, class_balance=0.0, label=None, labels=LONG_TAIL):
    sampler = Sampler(examples(labels=labels), class_balance)
    return sampler.draw(count, label, numpy_rng("test"))


def shares(class_balance):
    """The share of each class among many drawn images."""
    counts = np.bincount(np.array(LONG_TAIL)[drawn(40_000, class_balance).indices])
    return counts / counts.sum()


def test_without_balance_all_images_are_drawn_alike():
    np.testing.assert_allclose(shares(0.0), [8 / 14, 4 / 14, 2 / 14], atol=0.01)


def test_full_balance_draws_all_classes_alike_as_diff_mix_does():
    np.testing.assert_allclose(shares(1.0), [1 / 3, 1 / 3, 1 / 3], atol=0.01)


def test_half_a_balance_weighs_classes_by_the_square_root_of_their_size():
    roots = np.sqrt([8, 4, 2])
    np.testing.assert_allclose(shares(0.5), roots / roots.sum(), atol=0.01)


@given(label=st.integers(0, 2), balance=st.sampled_from([0.0, 1.0]), size=st.integers(1, 20))
def test_a_class_run_sees_images_of_its_class_only(label, balance, size):
    found = drawn(size, balance, label)
    assert found.indices.shape == found.is_flipped.shape == (size,)
    assert set(np.array(LONG_TAIL)[found.indices]) == {label}


@pytest.mark.parametrize(("hflip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_images_are_flipped_as_often_as_asked(hflip, expected):
    found = Sampler(examples(hflip=hflip), 0.0).draw(50, None, numpy_rng("test"))
    assert set(found.is_flipped) == expected


def test_each_image_is_encoded_once(tiny_model, monkeypatch):
    pipeline = load_img2img(tiny_model, "float32")
    encoded = []
    encode = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: (encoded.append(x), encode(x))[1])
    latents = Latents(pipeline.vae, examples())
    for _ in range(3):
        batch, labels = latents.batch(
            Draw(indices=np.array([0, 5, 0]), is_flipped=np.array([False, True, True]))
        )
        assert batch.shape == (3, 4, 16, 16)
        assert labels.tolist() == [0, 2, 0]
    assert len(encoded) == 3


def test_a_latent_is_the_scaled_mean_of_the_encoder(tiny_model):
    pipeline = load_img2img(tiny_model, "float32")
    image = examples().load(2).float() / 127.5 - 1
    both = Draw(indices=np.array([2, 2]), is_flipped=np.array([False, True]))
    found, _ = Latents(pipeline.vae, examples()).batch(both)
    with torch.no_grad():
        for latent, seen in zip(found, (image, image.flip(-1)), strict=True):
            mean = pipeline.vae.encode(seen[None]).latent_dist.mean[0]
            torch.testing.assert_close(latent, mean * pipeline.vae.config.scaling_factor)


def encoded(vae, image):
    with torch.no_grad():
        found = vae.encode((image.float() / 127.5 - 1)[None]).latent_dist
    return found.mean[0] * vae.config.scaling_factor, found.std[0] * vae.config.scaling_factor


def test_a_sampled_latent_is_drawn_from_the_encoder_s_gaussian_anew_at_each_step(tiny_model):
    pipeline = load_img2img(tiny_model, "float32")
    random = replace(examples(hflip=0.0), samples_latents=True)
    latents = Latents(pipeline.vae, random)
    drawn = Sampler(random, 0.0).draw(400, 1, numpy_rng("test"))
    (index,) = set(drawn.indices[drawn.indices == 1])
    mine = drawn.seeds[drawn.indices == 1]
    size = len(mine)
    same = Draw(indices=np.full(size, index), is_flipped=np.zeros(size, bool), seeds=mine)
    found, _ = latents.batch(same)
    assert torch.equal(found, latents.batch(same)[0])
    assert not torch.equal(found[0], found[1])
    mean, deviation = encoded(pipeline.vae, random.load(index))
    scores = (found - mean) / deviation
    assert abs(float(scores.mean())) < 0.02
    assert float(scores.std()) == pytest.approx(1, abs=0.02)


def test_a_random_square_is_cut_where_its_seed_says_and_encoded_as_cut(tiny_model):
    pipeline = load_img2img(tiny_model, "float32")
    picture = torch.arange(64 * 96).reshape(1, 64, 96).expand(3, 64, 96).remainder(251).byte()
    cut = RandomSquare(64)
    random = Examples(load=lambda index: picture, labels=np.array([0]), hflip=0.0, cut=cut)
    seeds = np.arange(40)
    squares = [cut(picture, torch_rng(int(seed))) for seed in seeds]
    offsets = {int((picture[0, 0] == int(s[0, 0, 0])).nonzero()[0]) for s in squares}
    assert min(offsets) < 5
    assert max(offsets) > 27
    assert {tuple(square.shape) for square in squares} == {(3, 64, 64)}
    drawn = Draw(indices=np.zeros(2, int), is_flipped=np.zeros(2, bool), seeds=seeds[:2])
    found, _ = Latents(pipeline.vae, random).batch(drawn)
    for latent, square in zip(found, squares, strict=False):
        torch.testing.assert_close(latent, encoded(pipeline.vae, square)[0])


@given(height=st.integers(20, 90), width=st.integers(20, 90), seed=st.integers(0, 50))
def test_a_random_square_comes_from_the_image_resized_as_torchvision_does(height, width, seed):
    image = torch.randint(256, (3, height, width), generator=torch_rng(seed)).byte()
    assert RandomSquare(32)(image, torch_rng(seed)).shape == (3, 32, 32)
    whole = resize_shortest(image, 32)
    assert min(whole.shape[1:]) == 32
    assert max(whole.shape[1:]) == 32 * max(height, width) // min(height, width)


def test_ranks_draw_the_seeds_of_their_own_images():
    random = replace(examples(), samples_latents=True)
    drawn = Sampler(random, 0.0).draw(6, None, numpy_rng("test"))
    parts = [drawn.part(World(r, 2, r, torch.device("cpu"), local_ranks=(0, 1))) for r in (0, 1)]
    assert [part.seeds.tolist() for part in parts] == [
        drawn.seeds[::2].tolist(),
        drawn.seeds[1::2].tolist(),
    ]
    assert Sampler(examples(), 0.0).draw(6, None, numpy_rng("test")).seeds is None


class Network(SimpleNamespace):
    """A U-Net that returns what `answer` does."""

    dtype = torch.float32

    def __call__(self, noisy, times, words):
        return SimpleNamespace(sample=self.answer(noisy, times))


def oracle_loss(prediction, answers_with):
    """The loss of a network that knows the clean latents, trained to predict `prediction`."""
    clean = torch.randn(4, 4, 8, 8, generator=torch_rng(0))
    scheduler = training_scheduler(
        {"prediction_type": prediction, "beta_schedule": "scaled_linear"}
    )

    def answer(noisy, times):
        alpha = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return {"epsilon": noise, "v_prediction": velocity}[answers_with]

    pipeline = SimpleNamespace(unet=Network(answer=answer), text_encoder=lambda ids: (ids.float(),))
    ids, labels = torch.zeros(3, 5, dtype=torch.int64), torch.tensor([0, 1, 2, 0])
    noisy = draw_corruption(clean.shape, scheduler, numpy_rng("test"))
    loss = denoising_loss(pipeline, scheduler, ids, (clean, labels), noisy)
    return float(loss)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_against_what_the_network_was_trained_to_predict(prediction):
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[prediction]
    assert oracle_loss(prediction, answers_with=prediction) < 1e-6
    assert oracle_loss(prediction, answers_with=other) > 0.1


def loss_by_hand(scheduler, clean, rng, gamma):
    """The loss of a network that answers 0, by the rule of diffusers' example scripts."""
    noise_rng = torch_rng(int(rng.integers(2**63)))
    noise = torch.randn(clean.shape, generator=noise_rng)
    times = torch.randint(0, 1000, (len(clean),), generator=noise_rng)
    snr = compute_snr(scheduler, times)
    weights = torch.stack([snr, gamma * torch.ones_like(snr)]).min(0).values
    wanted, weights = {
        "epsilon": (noise, weights / snr),
        "v_prediction": (scheduler.get_velocity(clean, noise, times), weights / (snr + 1)),
    }[scheduler.config.prediction_type]
    return ((wanted**2).mean((1, 2, 3)) * weights).mean()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_as_the_example_scripts_of_diffusers(prediction):
    clean = torch.randn(6, 4, 8, 8, generator=torch_rng(0))
    scheduler = training_scheduler(
        {"prediction_type": prediction, "beta_schedule": "scaled_linear"}
    )
    unet = Network(answer=lambda noisy, times: torch.zeros_like(noisy))
    pipeline = SimpleNamespace(unet=unet, text_encoder=lambda ids: (ids.float(),))
    batch = (clean, torch.zeros(6, dtype=torch.int64))
    ids = torch.zeros(1, 5, dtype=torch.int64)
    noisy = draw_corruption(clean.shape, scheduler, numpy_rng("test"))
    found = denoising_loss(pipeline, scheduler, ids, batch, noisy, 5.0)
    torch.testing.assert_close(found, loss_by_hand(scheduler, clean, numpy_rng("test"), 5.0))


@given(gamma=st.floats(0.1, 100), prediction=st.sampled_from(["epsilon", "v_prediction"]))
def test_min_snr_is_finite_if_a_schedule_ends_in_pure_noise(gamma, prediction):
    scheduler = training_scheduler(
        {
            "prediction_type": prediction,
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": True,
        }
    )
    scheduler.alphas_cumprod[-1] = 0
    weights = min_snr_weights(scheduler, torch.tensor([0, 500, 999]), gamma)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights[-1] == {"epsilon": 1, "v_prediction": 0}[prediction]


@given(size=st.integers(1, 7), ranks=st.integers(1, 4))
def test_the_noise_of_all_ranks_together_is_the_whole(size, ranks):
    scheduler = training_scheduler({"beta_schedule": "scaled_linear"})
    whole = draw_corruption((size, 4, 2, 2), scheduler, numpy_rng("test"))
    worlds = [World(rank, ranks, 0, torch.device("cpu")) for rank in range(ranks)]
    for tensor, parts in zip(whole, zip(*map(whole.part, worlds), strict=True), strict=True):
        assert sum(map(len, parts)) == size
        for rank, part in enumerate(parts):
            assert torch.equal(part, tensor[rank::ranks])
