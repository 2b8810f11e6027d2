"""CLIP's score of an image, held against its parts taken one by one."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from online_aug.errors import UserError
from online_aug.generation.gate import clip_score

IMAGES = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def probability_by_hand(folder, image):
    """Of "with", from both towers' embeddings."""
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    words = ["a photo with a bird on it", "a photo without a bird on it"]
    pixels = (image * 255).round().to(torch.uint8)
    seen = model.vision_model(**processor(images=pixels, return_tensors="pt")).pooler_output
    read = model.text_model(
        **processor(text=words, return_tensors="pt", padding=True)
    ).pooler_output
    picture = F.normalize(model.visual_projection(seen), dim=1)
    texts = F.normalize(model.text_projection(read), dim=1)
    return (model.logit_scale.exp() * picture @ texts.T).softmax(dim=1)[0, 0]


def test_the_score_is_the_probability_of_the_thing_against_its_absence(tiny_clip):
    scores = clip_score(tiny_clip, "bird", "cpu")(IMAGES)
    expected = torch.stack([probability_by_hand(tiny_clip, image) for image in IMAGES])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert scores.std() > 0


def test_another_thing_has_another_score(tiny_clip):
    bird, digit = (clip_score(tiny_clip, thing, "cpu")(IMAGES) for thing in ("bird", "digit"))
    assert (bird - digit).abs().max() > 1e-4


REFUSED = r"^gate\.clip must be a directory with a CLIP model and its processor in transformers' "


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{REFUSED}format, got "):
        clip_score(tmp_path, "bird", "cpu")


def test_a_model_of_another_kind_is_refused(tiny_model):
    with pytest.raises(UserError, match=f"{REFUSED}.*its model is of type clip_text_model"):
        clip_score(tiny_model / "text_encoder", "bird", "cpu")


def test_a_model_that_lacks_weights_is_refused(tiny_clip, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(tiny_clip, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{REFUSED}.*1 of its weights are missing"):
        clip_score(folder, "bird", "cpu")
