"""Validation sheets: drawn as stock diffusers draws, without an effect on what is learned."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from finetuning_samples import CONCEPTS, DRAWING, config_with, run, stock_pipeline

from online_aug.finetuning import validation
from online_aug.finetuning.loop import VALIDATION
from online_aug.seeding import torch_rng


@pytest.fixture
def sheets(monkeypatch):
    """The images and captions of every sheet, by file name."""
    drawn, write = {}, validation.write_validation_sheet

    def noted(path, images, captions):
        drawn[path.name] = (images, captions)
        write(path, images, captions)

    monkeypatch.setattr(validation, "write_validation_sheet", noted)
    return drawn


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"mode": "lora", "dtype": "bfloat16"}], ids=str)
def test_sheets_change_nothing_that_is_learned(tiny_model, tmp_path, sheets, settings):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tiny_model, tmp_path / "with", config_with(validation_steps=2, **settings))
    assert torch.equal(torch.rand(3), expected)
    run(tiny_model, tmp_path / "without", config_with(**settings))
    assert len(sheets) == 1
    assert contents(tmp_path / "with") == contents(tmp_path / "without")


@pytest.mark.slow
def test_a_sheet_is_drawn_at_the_configured_steps(tiny_model, tmp_path, sheets):
    run(tiny_model, tmp_path / "result", config_with(steps=4, validation_steps=2))
    names = sorted(path.name for path in (tmp_path / "result" / VALIDATION).iterdir())
    assert names == ["step_00000002.png", "step_00000004.png"] == sorted(sheets)
    with PIL.Image.open(tmp_path / "result" / VALIDATION / names[0]) as sheet:
        assert sheet.format == "PNG"
    first, later = (np.stack(sheets[name][0]) for name in names)
    assert (first != later).any(axis=(1, 2, 3)).all()


@pytest.mark.slow
def test_the_images_are_those_of_stock_diffusers(tiny_model, tmp_path, sheets):
    run(tiny_model, tmp_path / "result", config_with(validation_steps=3))
    ((images, words),) = sheets.values()
    assert [said[0] for said in words] == ["zero", "zero", "one", "one", "two", "two"]
    parts = stock_pipeline(tiny_model, tmp_path / "result").components
    stock = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    stock.scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config)
    for image, (_, prompt, noise) in zip(images, words, strict=True):
        expected = stock(
            prompt,
            height=64,
            width=64,
            num_inference_steps=DRAWING.num_inference_steps,
            guidance_scale=DRAWING.guidance_scale,
            generator=torch_rng(int(noise.split()[-1])),
            output_type="np",
        ).images[0]
        assert np.abs(image / 255 - expected).max() < 0.01


def test_of_many_classes_a_few_are_drawn_from_first_to_last(monkeypatch, tmp_path, sheets):
    monkeypatch.setattr(validation, "_text_to_image", lambda *_: None)
    black = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(validation, "_draw", lambda *_: black)
    many = CONCEPTS * 7
    validation.draw_validation(None, many, DRAWING, tmp_path / "sheet.png")
    ((_, words),) = sheets.values()
    assert len(words) == validation.CLASSES * validation.IMAGES
    assert [said[0] for said in (words[0], words[-1])] == ["zero", "two"]
