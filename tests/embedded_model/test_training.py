"""Corpus and batches of both tasks, the training steps, and the trained directories."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline

from online_aug.seeding import numpy_rng
from tools.embedded_model import training
from tools.embedded_model.architecture import new_autoencoder
from tools.embedded_model.corpus import (
    EDITS_PER_IMAGE,
    TASKS,
    build_corpus,
    build_edits,
    draw_caption_lesson,
    draw_edit_lesson,
)
from tools.embedded_model.training import train_denoiser

SMALL = (2, 3, 0)
"""Digits, birds, seed."""


@pytest.fixture(scope="module")
def edits():
    return build_edits(*SMALL)


def numbered(corpus):
    """Latents that hold the number of their image, from 1."""
    return torch.arange(1.0, len(corpus.images) + 1)[:, None, None, None].expand(-1, 4, 16, 16)


def settings(work, **changes):
    plain = {"steps": 1, "vae_steps": 0, "batch_size": 4, "lr": 1e-3, "digits": 2, "birds": 3}
    return training.Settings(work=work, seed=0, device="cpu", **plain | changes)


def test_every_image_has_its_edits_and_each_knows_its_source(edits):
    plain = build_corpus(*SMALL)
    count = len(plain.images)
    assert torch.equal(edits.images[:count], plain.images)
    assert len(edits.images) == count * (1 + EDITS_PER_IMAGE)
    assert sorted(edits.sources[count:]) == sorted(list(range(count)) * EDITS_PER_IMAGE)
    assert (edits.is_digit == edits.is_digit[edits.sources]).all()


def test_a_lesson_shows_the_edit_beside_its_source_or_beside_nothing(edits):
    lesson = draw_edit_lesson(edits, numbered(edits), 400, numpy_rng("lesson"))
    made = lesson.clean[:, 0, 0, 0].long().numpy() - 1
    shown = lesson.condition[:, 0, 0, 0].numpy()
    assert (made != edits.sources[made]).all()
    assert set(np.unique(shown - edits.sources[made] - 1)) <= {0.0, *(-np.arange(1.0, 6))}
    is_hidden = shown == 0
    assert (shown[~is_hidden] == edits.sources[made][~is_hidden] + 1).all()
    has_no_words = np.array([caption == "" for caption in lesson.captions])
    for share in (is_hidden & ~has_no_words, ~is_hidden & has_no_words, is_hidden & has_no_words):
        assert 0.02 < share.mean() < 0.09


def test_drawing_a_lesson_leaves_the_latents_alone(edits):
    latents = numbered(edits).clone()
    draw_edit_lesson(edits, latents, 50, numpy_rng("lesson"))
    assert torch.equal(latents, numbered(edits))


def test_an_image_from_a_caption_has_no_condition():
    corpus = build_corpus(*SMALL)
    lesson = draw_caption_lesson(corpus, numbered(corpus), 20, numpy_rng("lesson"))
    assert lesson.condition.shape == (20, 0, 16, 16)
    assert sum(lesson.clean[:, 0, 0, 0] <= 2) == 5  # the corpus' two digits, a quarter of the batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("text_to_image", StableDiffusionPipeline),
        ("instruct", StableDiffusionInstructPix2PixPipeline),
    ],
)
def test_a_trained_model_loads_as_the_pipeline_of_its_task(task, kind, tmp_path):
    corpus = TASKS[task].build_corpus(*SMALL)
    train_denoiser(TASKS[task], corpus, new_autoencoder(), settings(tmp_path), tmp_path / "out")
    pipeline = kind.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(pipeline) is kind
    channels = 4 + TASKS[task].condition_channels
    assert pipeline.unet.config.in_channels == channels


def run_loop(work, stop_after=None):
    """The weights of a layer after steps whose loss depends on their number."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    parts = {"model": model, "optimizer": optimizer}
    for step in training.training_steps("part", parts, optimizer, settings(work), 6, 0.1):
        step.finish(model(torch.full((1, 3), float(step.number))).square().sum())
        if step.number == stop_after:
            break
    return model.weight


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_STEPS", 2)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run_loop(tmp_path / "parts", stop_after=2)
    assert torch.equal(run_loop(tmp_path / "parts"), run_loop(tmp_path / "whole"))
