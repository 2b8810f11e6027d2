"""Latents of images, encoded once and in batches of one shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from online_aug.diffusion.loading import load_img2img
from online_aug.generation.vae import VAE_BATCH_SIZE, Autoencoder


@pytest.fixture(scope="module")
def vae(tiny_model):
    return load_img2img(tiny_model, "float32").vae


@pytest.fixture
def calls(vae):
    """Record the batch sizes with which the encoder and the decoder are called."""
    sizes = {"encoder": [], "decoder": []}
    hooks = [
        getattr(vae, part).register_forward_pre_hook(
            lambda _, inputs, part=part: sizes[part].append(len(inputs[0]))
        )
        for part in sizes
    ]
    yield sizes
    for hook in hooks:
        hook.remove()


def pictures(count, size=64):
    rng = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, size, size), generator=rng).to(torch.uint8)


def test_the_moments_are_those_of_the_vae(vae):
    images = pictures(3)
    for image, moments in zip(images, Autoencoder(vae).encode(images), strict=True):
        with torch.no_grad():
            expected = vae.encode(2 * image[None].float() / 255 - 1).latent_dist
        torch.testing.assert_close(moments.mean, expected.mean[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(moments.std, expected.std[0], rtol=0, atol=1e-4)


def test_decoding_gives_the_pixels_of_the_vae_between_0_and_1(vae):
    latents = list(torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    for latent, image in zip(latents, Autoencoder(vae).decode(latents), strict=True):
        with torch.no_grad():
            decoded = vae.decode(latent[None] / vae.config.scaling_factor).sample[0]
        torch.testing.assert_close(image, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


def test_an_image_is_encoded_once(vae, calls):
    autoencoder, images = Autoencoder(vae), pictures(3)
    first = autoencoder.encode(images)
    again = autoencoder.encode(torch.cat([images.flip(0), images[:1]]))
    assert len(calls["encoder"]) == 1
    assert torch.equal(again[0].mean, first[2].mean)
    assert torch.equal(again[3].std, first[0].std)


@settings(max_examples=6)
@given(count=st.integers(1, 2 * VAE_BATCH_SIZE + 1))
def test_the_encoder_is_called_at_one_shape_so_the_result_does_not_depend_on_the_batch(vae, count):
    sizes = []
    hook = vae.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = Autoencoder(vae).encode(pictures(9)[:count])
    alone = Autoencoder(vae).encode(pictures(9)[count - 1 : count])
    hook.remove()
    assert set(sizes) == {VAE_BATCH_SIZE}
    torch.testing.assert_close(together[-1].mean, alone[0].mean, rtol=0, atol=1e-5)


def test_the_latents_used_longest_ago_are_dropped_first(vae, calls):
    one = 2 * 4 * 16 * 16 * 4
    autoencoder, images = Autoencoder(vae, cache_bytes=2 * one), pictures(3)
    for place in (0, 1, 0, 2, 0, 1):
        autoencoder.encode(images[place : place + 1])
    assert len(calls["encoder"]) == 4  # 0, 1, 2 and, dropped in between, 1 again


def test_without_latents_the_decoder_is_not_called(vae, calls):
    assert Autoencoder(vae).decode([]) == []
    assert calls["decoder"] == []
