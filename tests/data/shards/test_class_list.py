"""Names of classes come from files, timm's lists and the shards; 21,841 are no obstacle."""

import json

import numpy as np
import pytest
from shard_samples import encoded, members_of, noise, write_parquet, write_tar, write_wds

from online_aug.classifier.class_names import difference, labels_by_loose_name
from online_aug.data.cuts import few_shot, stratified_split
from online_aug.data.settings import DataConfig
from online_aug.data.shards.class_list import read_class_names
from online_aug.data.shards.splits import shard_splits
from online_aug.data.sources import data_set_name, load_splits
from online_aug.diffusion.adapters import class_concepts, named_concepts
from online_aug.errors import UserError
from online_aug.labels import rare_class_weights
from online_aug.methods import METHODS, MethodContext, Source

MANY = 21_841


@pytest.fixture(scope="module")
def all_names():
    return read_class_names("imagenet-22k")


def names_of(folder, **settings):
    return load_splits(DataConfig(source=str(folder), **settings)).train.class_names


def write_one(folder):
    write_tar(folder / "0.tar", members_of(noise(20, 0), [0, 1] * 10))


@pytest.mark.parametrize("text", ["cat\ndog\n", " cat \r\ndog", '["cat", "dog"]'])
def test_names_come_from_a_file_in_the_order_of_the_labels(tmp_path, text):
    write_one(tmp_path / "shards")
    (tmp_path / "names").write_text(text)
    assert names_of(tmp_path / "shards", class_names=str(tmp_path / "names")) == ("cat", "dog")


def test_wordnet_s_numbers_become_words_and_a_shared_word_keeps_its_number(tmp_path):
    write_wds(tmp_path, {"train": [0, 1] * 10}, class_names=["n02012849", "n03126707"])
    found = load_splits(DataConfig(source="wds/x", root=tmp_path)).train.class_names
    assert found == ("crane (n02012849)", "crane (n03126707)")


def test_names_of_a_file_replace_those_of_the_shards(tmp_path):
    write_parquet(tmp_path / "shards" / "0.parquet", [*map(encoded, noise(20, 0))], [0, 1] * 10)
    (tmp_path / "names").write_text("tom\nrex")
    assert names_of(tmp_path / "shards", class_names=str(tmp_path / "names")) == ("tom", "rex")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat\ncat\n", "names of classes must differ, 'cat' stands twice in"),
        ("cat\n\ndog\n", "every class must have a name in"),
        ('["cat", 1]', "every class must have a name in"),
        ('["cat"', "cannot use .*: it is not JSON"),
        ("cat\n", r"labels of .* \(train\) must be whole numbers from 0 to 0, .* got 1$"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, text, reason):
    write_one(tmp_path / "shards")
    (tmp_path / "names").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        names_of(tmp_path / "shards", class_names=str(tmp_path / "names"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/file", "imagenet-99k"])
def test_a_list_that_does_not_exist_is_refused_with_what_does(name):
    with pytest.raises(UserError, match=r"data\.class_names must be a file .* such as imagenet-"):
        read_class_names(name)


@pytest.mark.parametrize("key", ["class_names", "image_key", "label_key"])
def test_keys_of_shards_are_refused_for_other_sources(tmp_path, key):
    with pytest.raises(UserError, match=rf"data\.{key} must be null unless data\.source names sh"):
        load_splits(DataConfig(source="/no/folder", **{key: "x"}))
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match=rf"data\.{key} must be null unless"):
        load_splits(DataConfig(source=str(tmp_path), **{key: "x"}))


@pytest.mark.slow
def test_a_shard_of_21841_classes_is_opened_with_all_its_names(tmp_path, all_names):
    assert len(set(all_names)) == len(all_names) == MANY
    rng = np.random.default_rng(0)
    image = encoded(noise(1, 0)[0])
    contents = [image + rng.bytes(8) for _ in range(MANY)]
    labels = [*range(MANY)][::-1]
    write_parquet(tmp_path / "0.parquet", contents, labels, names=list(all_names))
    for _ in range(2):
        found = shard_splits(DataConfig(source=str(tmp_path)), None)["train"]
        assert found.class_names == all_names
        assert found.labels.tolist() == labels
    assert found.content(5) == contents[5]


@pytest.mark.slow
def test_prompts_plans_and_cuts_take_21841_classes(all_names):
    assert named_concepts(all_names, "", "a photo of {}")[5].name == all_names[5]
    assert class_concepts(all_names, "")[-1].token == f"<class_{MANY - 1}>"
    labels = np.tile(np.arange(MANY), 4)
    rng = np.random.default_rng(0)
    train, test = stratified_split(labels, [0.5, 0.5], rng)
    assert np.bincount(labels[train]).tolist() == np.bincount(labels[test]).tolist() == [2] * MANY
    assert len(few_shot(labels, 1, rng)) == MANY
    weights = rare_class_weights((4,) * MANY, 1.0)
    assert sum(weights) == pytest.approx(1)
    requests = [planned(all_names, balance) for balance in (0.0, 1.0)]
    assert all(0 <= request.target_label < MANY for request in requests)


def planned(names, balance):
    diff_mix = METHODS["diff_mix"]
    context = MethodContext(
        prompts=tuple(f"a photo of a {name}" for name in names),
        class_sizes=(4,) * len(names),
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        num_inference_steps=25,
        scheduler="dpmsolver++",
        resolution=512,
        seed=0,
        generator_fingerprint="a model",
        gate_version="",
    )
    method = diff_mix(diff_mix.Settings(name="diff_mix", target_balance=balance))
    source = Source(digest="00" * 16, label=7)
    return method.plan(source, 0, context, np.random.default_rng(0))


@pytest.mark.slow
def test_names_are_matched_and_compared_at_21841_classes(all_names):
    loose = labels_by_loose_name([name.upper().replace(" ", "_") for name in all_names])
    assert loose["tench"] == all_names.index("tench")
    others = (*all_names[:-1], "another")
    assert difference(all_names, others).startswith(f"label {MANY - 1} was")
    assert data_set_name("shards", all_names) != data_set_name("shards", others)
    text = json.dumps(all_names)
    assert json.loads(text) == list(all_names)
