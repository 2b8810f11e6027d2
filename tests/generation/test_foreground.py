"""The generator's own maps: where its prompt changes what it predicts in an image."""

import numpy as np
import pytest
import torch

from online_aug.data.pocket_birds import SPECIES, random_scene, render
from online_aug.diffusion.directory import EMBEDDED
from online_aug.diffusion.loading import load_img2img
from online_aug.generation.foreground import ForegroundFinder, Glances, shared_out
from online_aug.saliency import grab_cut, otsu_masks, upscaled

GLANCES = Glances(timesteps=(0.5,), draws=2)
PROMPT = "a photo of a bird"


def birds(count):
    """Return images and true masks of birds, each of a species of its own."""
    rng = np.random.default_rng(0)
    drawn = [render(species, random_scene(rng)) for species in list(SPECIES.values())[:count]]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images, np.stack([mask > 127 for _, mask in drawn])


def finder_of(folder, batch_size=2, dtype="float32", glances=GLANCES):
    return ForegroundFinder(load_img2img(folder, dtype), glances, batch_size)


@pytest.fixture(scope="module")
def embedded():
    return EMBEDDED["image_to_image"]


def test_a_map_depends_on_its_image_and_prompt_alone(tiny_model):
    finder, images = finder_of(tiny_model, batch_size=3), birds(4)[0]
    prompts = [PROMPT, "a photo of a digit"] * 2
    together = finder(images, prompts)
    alone = finder(images[3:], prompts[3:])
    assert torch.equal(together[3:], alone)
    assert not torch.equal(finder(images[3:], [PROMPT]), alone)
    assert together.shape == (4, 16, 16)
    assert together.amin() == 0
    assert together.amax() <= 1


def test_half_the_precision_gives_the_same_map(embedded):
    images, _ = birds(2)
    exact = finder_of(embedded)(images, [PROMPT] * 2)
    rounded = finder_of(embedded, dtype="bfloat16")(images, [PROMPT] * 2)
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().max() < 0.1


def test_the_network_is_left_as_it_was(tiny_model, monkeypatch):
    finder, images = finder_of(tiny_model), birds(2)[0]
    block = finder._unet.up_blocks[-2]
    finder(images, [PROMPT] * 2)
    assert not block._forward_hooks
    monkeypatch.setattr(finder._unet, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finder(images, [PROMPT] * 2)
    assert not block._forward_hooks


def test_if_memory_runs_out_fewer_images_are_looked_at_together(tiny_model, monkeypatch):
    finder, images = finder_of(tiny_model, batch_size=4), birds(4)[0]
    forward = finder._unet.forward

    def call(latents, *args, **kwargs):
        if len(latents) > 4:
            raise torch.OutOfMemoryError
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(finder._unet, "forward", call)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    maps = finder(images, [PROMPT] * 4)
    assert finder.batch_size == 2
    assert torch.equal(maps, finder_of(tiny_model, batch_size=2)(images, [PROMPT] * 4))


def test_an_image_that_does_not_fit_alone_is_an_error(tiny_model, monkeypatch):
    def call(*_, **__):
        raise torch.OutOfMemoryError

    finder = finder_of(tiny_model)
    monkeypatch.setattr(finder._unet, "forward", call)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        finder(birds(1)[0], [PROMPT])


def test_a_difference_is_shared_out_among_places_with_the_same_features():
    rng = torch.Generator().manual_seed(0)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 1:5] = True
    difference = torch.rand(1, 8, 8, generator=rng) + 0.3 * inside
    features = torch.stack([inside.float(), 1 - inside.float()])[None]
    (found,) = shared_out(difference, features)
    assert (found[inside] > 0.99).all()
    assert (found[~inside] < 0.01).all()


def test_without_a_difference_nothing_is_found():
    features = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert not shared_out(torch.ones(1, 4, 4), features).any()


@pytest.mark.slow
def test_the_embedded_model_finds_birds(embedded):
    """Grad-CAM's masks reach 0.3 at best (docs/RESULTS.md)."""
    images, truth = birds(12)
    maps = finder_of(embedded, batch_size=12)(images, [PROMPT] * 12)
    large = upscaled(maps, (64, 64))
    pictures = images.permute(0, 2, 3, 1).numpy()
    cut = [grab_cut(*pair) for pair in zip(pictures, large.numpy(), strict=True)]
    for masks, bound in ((otsu_masks(large).numpy(), 0.6), (np.stack(cut), 0.8)):
        overlap = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
        assert overlap.mean() > bound
