from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from run_records import CONFUSION, evaluation, summary

from online_aug.config import Config
from online_aug.data.image_sets import FolderSet, Splits
from online_aug.reporting.publication.model_card import CardContent, model_card, public_name

NOTHING = {}


def splits(names=("null", "Möwe")):
    parts = [
        FolderSet(
            root=Path("/home/somebody/photos"),
            files=tuple(f"{n}.png" for n in range(count)),
            class_names=names,
            labels=np.zeros(count, np.int64),
        )
        for count in (40, 10, 20)
    ]
    return Splits(train=parts[0], val=parts[1], test=parts[2])


def content(changes=NOTHING, names=("null", "Möwe"), **sections):
    sections.setdefault("data", {"source": "/home/somebody/photos", "image_size": 32})
    return CardContent(
        name="birds-seed0",
        config=Config.model_validate(sections),
        splits=splits(names),
        summary=replace(summary(), **changes),
        evaluation=evaluation(CONFUSION),
    )


def test_the_card_tells_data_method_share_and_results():
    card = model_card(content(method={"name": "sgd_mix"}))
    for told in (
        "`photos`: 40 train, 10 val, 20 test images",
        "| method | `sgd_mix` |",
        "30.0 % of 100 images served: 20 fresh, 10 cached, 0 composed",
        "| top-1 accuracy | 90.0 % |",
        "| null | 80.0 % |",
        "local-dir:",
    ):
        assert told in card


def test_the_head_is_what_the_hub_reads():
    head = ModelCard(model_card(content())).data
    assert (head.library_name, head.pipeline_tag) == ("timm", "image-classification")
    (result, _) = head.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9)
    assert "diff_mix" in head.tags


def test_no_path_of_this_machine_is_told(tmp_path):
    card = model_card(
        content(
            data={"source": "/home/somebody/photos"},
            generation={"model": "/home/somebody/models/sd15"},
            classifier={"checkpoint": "/home/somebody/weights.safetensors"},
        )
    )
    assert "somebody" not in card
    assert "`sd15`" in card
    assert "`weights.safetensors`" in card


def test_a_run_on_real_images_alone_names_no_method():
    card = model_card(content({"served_fresh": 0, "served_cached": 0, "served_real": 100}))
    assert "on real images alone" in card
    assert "| method | none |" in card
    assert "0.0 % of 100 images" in card
    assert "diff_mix" not in card


def test_a_run_that_served_nothing_has_a_card():
    nothing = {"served_real": 0, "served_fresh": 0, "served_cached": 0}
    assert "0.0 % of 0 images" in model_card(content(nothing))


def test_class_names_cannot_break_the_card():
    names = ("a|b", "<script>\n# x")
    card = model_card(content(names=names))
    assert "<script>" not in card.replace("\\<script", "")
    assert "a\\|b, \\<script\\> \\# x" in card


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("digits", "digits"),
        ("torch/cifar10", "torch/cifar10"),
        ("/data/birds", "birds"),
        ("./birds/", "birds"),
        ("a/b/birds", "birds"),
        ("mine/methods.py:NextClass", "methods.py:NextClass"),
    ],
)
def test_a_path_is_told_by_its_last_part(name, shown):
    assert public_name(name) == shown


def test_every_setting_of_a_method_can_be_written():
    for name in ("diffusemix", "sgd_mix", "da_fusion"):
        card = model_card(content(method={"name": name}))
        block = card.split("```yaml\n")[1].split("```")[0]
        assert yaml.safe_load(block)[0]["name"] == name
