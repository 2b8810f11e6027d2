"""Generated images are near real ones, apart from one another, or not."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from online_aug.errors import UserError
from online_aug.generation.clip import ClipFeatures
from online_aug.reporting.image_quality import judge_class, overall


def grey(*levels):
    return [np.full((40, 48, 3), level, np.uint8) for level in levels]


def test_distances_are_those_to_the_nearest_image_of_the_class():
    found = judge_class("a", grey(0, 51, 255), grey(0, 102))
    assert found.images == 2
    assert found.to_real == pytest.approx((0 + 0.2) / 2, abs=1e-4)
    assert found.between_real == pytest.approx((0.2 + 0.2 + 0.8) / 3, abs=1e-4)
    assert found.between_generated == pytest.approx(0.4, abs=1e-4)
    assert found.clip_score is None


def test_images_that_are_all_alike_are_not_diverse():
    found = judge_class("a", grey(9), grey(70, 70, 70))
    assert found.between_generated == 0
    assert found.between_real is None


def test_all_classes_count_alike():
    generated = {"a": grey(51), "b": grey(102, 102, 102)}
    mean = overall({name: judge_class(name, grey(0), made) for name, made in generated.items()})
    assert mean.images == 4
    assert mean.to_real == pytest.approx((0.2 + 0.4) / 2, abs=1e-4)
    assert mean.between_generated == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP model without training, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    side = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    CLIPProcessor(CLIPImageProcessor(**side), tokenizer).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "bos_token_id": 52, "eos_token_id": 53}
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_scores_images_against_the_name_of_their_class(clip):
    features = ClipFeatures(clip, "--clip")
    found = judge_class("crow", grey(0, 255), grey(0, 80), features)
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    pictures = [torch.from_numpy(one).permute(2, 0, 1) for one in grey(0, 80)]
    asked = processor(text=["a photo of a crow"], images=pictures, return_tensors="pt")
    with torch.no_grad():
        cosines = model.eval()(**asked).logits_per_image / model.logit_scale.exp()
    assert found.clip_score == pytest.approx(2.5 * float(cosines.clamp(min=0).mean()), abs=1e-5)
    assert found.clip_score_real is not None
    assert found.to_real <= found.between_generated + 1e-5


def test_a_folder_without_a_clip_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--clip must be a directory with a CLIP model"):
        ClipFeatures(tmp_path, "--clip")
