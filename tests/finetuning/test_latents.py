import numpy as np
import pytest
import torch
from finetuning_samples import examples
from hypothesis import given
from hypothesis import strategies as st

from online_aug.diffusion.loading import load_img2img
from online_aug.finetuning.loop import Draw, Latents, Sampler
from online_aug.seeding import numpy_rng

LONG_TAIL = (0,) * 8 + (1,) * 4 + (2,) * 2


def drawn(count, class_balance=0.0, label=None, labels=LONG_TAIL):
    sampler = Sampler(examples(labels=labels), class_balance)
    return sampler.draw(count, label, numpy_rng("test"))


def shares(class_balance):
    """Of the classes among many images drawn."""
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
