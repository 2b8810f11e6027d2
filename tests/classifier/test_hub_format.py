"""A folder that a run leaves is one that timm loads, with the same network and the same pixels."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from classifier_samples import make_config
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from online_aug.classifier.class_names import MODEL_FILE, class_metadata
from online_aug.classifier.evaluation import evaluate
from online_aug.classifier.hub_format import HUB_CONFIG_FILE, read_hub_model, write_hub_config
from online_aug.classifier.model import build_classifier, input_statistics
from online_aug.classifier.prediction import predict, unlabelled
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.data.transforms import EvalTransform, frame_of, normalise
from online_aug.errors import UserError

NAMES = ("auk, great", "Möwe", "tern")
SHOWN = [
    {"image_size": 32},
    {"image_size": 32, "resize_px": 36},
    {"image_size": 32, "resize_px": 40, "resize": "shortest"},
]


def write_folder(folder, name="test_resnet", data=SHOWN[0], **classifier):
    """Write weights and description as a run does; return network and settings."""
    config = make_config(classifier={"name": name, **classifier}, data=data)
    network = build_classifier(
        config.classifier, len(NAMES), image_size=config.data.image_size, seed=3
    ).eval()
    folder.mkdir(exist_ok=True)
    content = safetensors.torch.save(network.state_dict(), metadata=class_metadata(NAMES))
    (folder / MODEL_FILE).write_bytes(content)
    write_hub_config(folder, network, config.data)
    return network, config


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timm_loads_the_folder_with_its_weights(tmp_path, name):
    network, _ = write_folder(tmp_path, name)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize("data", SHOWN, ids=str)
def test_timm_shows_the_network_what_evaluation_shows_it(tmp_path, data):
    _, config = write_folder(tmp_path, data=data, mean=[0.4, 0.5, 0.6], std=0.2)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    pixels = noise(90, 135)  # both sides whole after resizing: there timm rounds down, we do not
    theirs = create_transform(**resolve_model_data_config(loaded))(Image.fromarray(pixels))
    view = EvalTransform(frame=frame_of(config.data))
    ours = view(torch.from_numpy(pixels).permute(2, 0, 1))
    one_level = 1 / 255 / 0.2
    difference = (normalise(ours[None], (0.4, 0.5, 0.6), (0.2,) * 3)[0] - theirs).abs()
    assert difference.max() <= 2.1 * one_level
    assert difference.mean() < 0.5 * one_level


@pytest.mark.parametrize("data", [*SHOWN, {"image_size": 48, "resize": "longest"}], ids=str)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_reading_gives_back_network_names_and_frame(tmp_path, name, data):
    network, config = write_folder(tmp_path, name, data, mean=0.3, std=0.4)
    model = read_hub_model(tmp_path)
    expected, frame = frame_of(config.data), model.frame
    assert (frame.size, frame.resize) == (expected.size, expected.resize)
    assert frame.resize_px == (expected.resize_px or expected.size)
    assert model.class_names == NAMES
    assert input_statistics(model.network) == input_statistics(network)
    images = torch.rand(1, 3, frame.size, frame.size)
    with torch.inference_mode():
        assert torch.equal(model.network.eval()(images), network(images))


@pytest.mark.parametrize("size", [16, 224, 299, 448])
def test_timm_finds_the_size_before_the_cut(tmp_path, size):
    network, _ = write_folder(tmp_path)
    for resize_px in range(size, 2 * size, 1 + size // 4):
        write_hub_config(tmp_path, network, DataConfig(image_size=size, resize_px=resize_px))
        share = json.loads((tmp_path / HUB_CONFIG_FILE).read_text())["pretrained_cfg"]["crop_pct"]
        assert math.floor(size / share) == resize_px


def test_predictions_are_those_of_the_evaluation(tmp_path):
    network, _ = write_folder(tmp_path / "model")
    for split in ("train", "val", "test"):
        for label, name in enumerate(NAMES):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(3):
                place = tmp_path / "images" / split / name / f"{number}.png"
                Image.fromarray(noise(40, 30, seed=10 * label + number)).save(place)
    config = make_config(data={"source": str(tmp_path / "images"), "image_size": 32})
    test = load_splits(config.data).test
    expected = evaluate(network, test, config.data, "cpu")
    files = [str(test.path(index)) for index in range(len(test))]
    found = list(
        predict(
            read_hub_model(tmp_path / "model"),
            unlabelled(files),
            "cpu",
            top=9,
            on_bad_image=pytest.fail,
        )
    )
    assert [each.image for each in found] == files
    names = [test.class_names[label] for label in test.labels]
    right = [each.classes[0] == name for each, name in zip(found, names, strict=True)]
    assert sum(right) / len(right) == expected.top1
    assert all(sorted(each.classes) == sorted(NAMES) for each in found)
    assert all(sum(each.probabilities) == pytest.approx(1) for each in found)
    assert all(list(each.probabilities) == sorted(each.probabilities)[::-1] for each in found)


def change(folder, **values):
    file = folder / HUB_CONFIG_FILE
    content = json.loads(file.read_text())
    cfg = content["pretrained_cfg"] | values.pop("pretrained_cfg", {})
    file.write_text(json.dumps(content | values | {"pretrained_cfg": cfg}))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"architecture": "resnet5O"}, "must be a timm model, got 'resnet5O'"),
        ({"architecture": "test_vit"}, "RUN must hold the weights of test_vit with 3 classes"),
        ({"label_names": []}, "label_names is not"),
        ({"label_names": ["tern", "Möwe", "auk"]}, "label 0 was 'auk, great' and is 'tern' now"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "pretrained_cfg.crop_pct is not"),
        ({"pretrained_cfg": {"input_size": [3, 9999999, 32]}}, "pretrained_cfg.input_size.1 is"),
        ({"pretrained_cfg": {"input_size": [3, 64, 32]}}, "must be of square images"),
        ({"pretrained_cfg": {"interpolation": "bicubic"}}, "pretrained_cfg.interpolation is not"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(tmp_path, values, reason):
    write_folder(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(UserError) as caught:
        read_hub_model(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": ' * 10_000, "\x80"])
def test_a_description_that_is_none_is_one_line(tmp_path, content):
    write_folder(tmp_path)
    (tmp_path / HUB_CONFIG_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json must be ") as caught:
        read_hub_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [MODEL_FILE, HUB_CONFIG_FILE])
def test_a_run_that_has_not_finished_is_one_line(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"RUN must be a finished run .* has no {name}"):
        read_hub_model(tmp_path)


def test_weights_that_are_none_are_one_line(tmp_path):
    write_folder(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"\x80\x04nothing")
    with pytest.raises(UserError, match="RUN must be safetensors"):
        read_hub_model(tmp_path)
