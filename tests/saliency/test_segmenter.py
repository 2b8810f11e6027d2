"""Segmenters of transformers and ONNX files, on tiny checkpoints that are made here."""

import pytest
import torch
from segmenter_samples import save_onnx, save_sam, save_segformer

from online_aug.saliency.segmenter import load_segmenter, segmenter_digest

SIDE = 64
BATCH = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)


def test_all_but_class_0_of_a_semantic_segmentation_is_foreground(tmp_path):
    from transformers import SegformerForSemanticSegmentation

    folder = save_segformer(tmp_path, classes=3)
    segmenter = load_segmenter(folder, "cpu", SIDE)
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(pixel_values=(BATCH / 255 - 0.5) / 0.25).logits
    expected = torch.nn.functional.interpolate(
        logits.softmax(1)[:, 1:].sum(1, keepdim=True), (64, 64), mode="area"
    )
    torch.testing.assert_close(segmenter.call(BATCH), expected[:, 0], atol=1e-5, rtol=0)
    assert segmenter.side == SIDE
    assert load_segmenter(folder, "cpu").side == 96


def test_one_class_of_a_semantic_segmentation_is_the_foreground_itself(tmp_path):
    from transformers import SegformerForSemanticSegmentation

    folder = save_segformer(tmp_path, classes=1)
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(pixel_values=(BATCH / 255 - 0.5) / 0.25).logits
    expected = torch.nn.functional.interpolate(logits.sigmoid(), (64, 64), mode="area")[:, 0]
    found = load_segmenter(folder, "cpu", SIDE).call(BATCH)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_mask_generation_is_asked_for_the_object_at_the_centre(tmp_path):
    from transformers import SamModel

    folder = save_sam(tmp_path)
    segmenter = load_segmenter(folder, "cpu")
    assert segmenter.side == 64
    maps = segmenter.call(BATCH)
    assert maps.shape == (3, 64, 64)
    assert 0 <= maps.min() <= maps.max() <= 1
    model = SamModel.from_pretrained(folder).eval()
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        found = model(
            pixel_values=((BATCH[:1] / 255) - mean) / std,
            input_points=torch.tensor([[[[32.0, 32.0]]]]),
        )
    best = found.pred_masks[0, 0, found.iou_scores[0, 0].argmax()].sigmoid()
    expected = torch.nn.functional.interpolate(best[None, None], (64, 64), mode="area")[0, 0]
    torch.testing.assert_close(maps[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", ["b", 1])
@pytest.mark.parametrize("operator", ["Sigmoid", "Identity"])
def test_an_onnx_file_sees_images_as_u2_net_does(tmp_path, batch, operator):
    file = save_onnx(tmp_path / "net.onnx", batch=batch, operator=operator, channels=(1,))
    found = load_segmenter(file, "cpu", SIDE).call(BATCH)
    brightest = BATCH.amax((1, 2, 3)).view(3, 1, 1)
    expected = torch.sigmoid((BATCH[:, 1] / brightest - 0.456) / 0.224)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_onnx_file_of_one_size_is_asked_for_that(tmp_path):
    file = save_onnx(tmp_path / "net.onnx", side=48)
    assert load_segmenter(file, "cpu").side == 48
    assert load_segmenter(save_onnx(tmp_path / "any.onnx"), "cpu").side == 320
    with pytest.raises(ValueError, match="takes images of 48 px alone, saliency.image_size is 64"):
        load_segmenter(file, "cpu", SIDE)


def write_classifier(folder):
    (folder / "config.json").write_text('{"architectures": ["ResNetForImageClassification"]}')
    return folder


def write_remote_code(folder):
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "birefnet.BiRefNet"}}')
    return folder


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (write_classifier, "ResNetForImageClassification, for neither semantic segmentation nor"),
        (write_remote_code, "its code lies in its own repository, which is not run"),
        (
            lambda at: save_segformer(at, names=["wall", "floor"]),
            "must be the background, and is 'w",
        ),
        (lambda at: save_onnx(at / "n.onnx", inputs=2), "it must have one input, has 2"),
        (lambda at: save_onnx(at / "n.onnx", channels=(0, 1)), "must be b x 1 x s x s, is .*2"),
    ],
    ids=["classifier", "remote code", "no background", "two inputs", "two channels"],
)
def test_a_model_for_something_else_is_named(tmp_path, write, line):
    with pytest.raises(ValueError, match=line):
        load_segmenter(write(tmp_path), "cpu")


def test_other_weights_have_another_digest(tmp_path):
    (tmp_path / "a").mkdir()
    one = segmenter_digest(save_segformer(tmp_path / "a"))
    assert segmenter_digest(tmp_path / "a") == one
    (tmp_path / "a" / "preprocessor_config.json").write_text("{}")
    assert segmenter_digest(tmp_path / "a") != one
