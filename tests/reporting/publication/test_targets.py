import json
import os
import re

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from classifier_samples import make_config
from hub_server import local_hub
from PIL import Image

from online_aug.classifier.class_names import MODEL_FILE, class_metadata
from online_aug.classifier.hub_format import write_hub_config
from online_aug.classifier.model import build_classifier
from online_aug.cli.predict import main as predict
from online_aug.cli.publish import main
from online_aug.errors import UserError
from online_aug.reporting.publication.model_card import CARD_FILE
from online_aug.reporting.publication.targets import PUBLISHED

NAMES = ("auk", "Möwe", "tern")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a finished run, with files that are not published."""
    folder = tmp_path_factory.mktemp("runs") / "birds-seed0"
    (folder / "checkpoints").mkdir(parents=True)
    config = make_config(data={"image_size": 32})
    network = build_classifier(config.classifier, len(NAMES), seed=3)
    content = safetensors.torch.save(network.state_dict(), metadata=class_metadata(NAMES))
    (folder / MODEL_FILE).write_bytes(content)
    (folder / "best.safetensors").write_bytes(content)
    (folder / "config.yaml").write_text("data: {source: /home/somebody}")
    (folder / CARD_FILE).write_text("# Birds\n")
    write_hub_config(folder, network, config.data)
    return folder


def same(folder, run):
    return all((folder / name).read_bytes() == (run / name).read_bytes() for name in PUBLISHED)


def test_a_folder_gets_weights_description_and_card(run, tmp_path, capsys):
    target = tmp_path / "new" / "birds"
    main([str(run), "--to", str(target)])
    assert sorted(path.name for path in target.iterdir()) == sorted(PUBLISHED)
    assert same(target, run)
    assert capsys.readouterr().out == f"published to {target}\n"


def test_what_was_published_is_loaded_by_timm_and_predicts(run, tmp_path, capsys):
    main([str(run), "--to", str(tmp_path / "birds")])
    loaded = timm.create_model(f"local-dir:{tmp_path / 'birds'}", pretrained=True).eval()
    assert loaded(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    capsys.readouterr()
    said = []
    for folder in (run, tmp_path / "birds"):
        predict([str(folder), str(tmp_path / "red.png"), "--json"])
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]


def test_publishing_again_replaces_what_was_published(run, tmp_path):
    main([str(run), "--to", str(tmp_path / "birds")])
    (tmp_path / "birds" / CARD_FILE).write_text("older")
    (tmp_path / "birds" / ".gitattributes").write_text("kept")
    main([str(run), "--to", str(tmp_path / "birds")])
    assert same(tmp_path / "birds", run)
    assert (tmp_path / "birds" / ".gitattributes").read_text() == "kept"


def test_a_readme_of_something_else_is_not_replaced(run, tmp_path):
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UserError, match=r"has a README\.md of something else"):
        main([str(run), "--to", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "my project"


def test_a_target_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            UserError, match="--to must be a folder that can be written, got .* is a"
        ):
            main([str(run), "--to", str(target)])
    with pytest.raises(UserError, match="--to must be another folder than RUN"):
        main([str(run), "--to", str(run)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_line(run, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="is read-only"):
        main([str(run), "--to", str(tmp_path / "birds")])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_that_lacks_a_file_is_one_line_and_nothing_is_written(run, tmp_path, name):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for each in PUBLISHED:
        if each != name:
            (unfinished / each).write_bytes((run / each).read_bytes())
    with pytest.raises(UserError, match=f"RUN must be a finished run.* has no {re.escape(name)}"):
        main([str(unfinished), "--to", str(tmp_path / "birds")])
    assert not (tmp_path / "birds").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, for which nobody is logged in."""
    with local_hub() as (hub, address):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        hub.address = address
        yield hub


def test_the_hub_gets_the_three_files_in_a_new_repository(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    main([str(run), "--to", "hf://me/birds", "--private"])
    assert hub.private == {"me/birds": True}
    assert hub.files["me/birds"] == {name: (run / name).read_bytes() for name in PUBLISHED}
    assert f"published to {hub.address}/me/birds" in capsys.readouterr().out


def test_without_a_login_nothing_is_sent(run, hub):
    with pytest.raises(UserError, match="--to hf://me/birds needs a login: hf auth login"):
        main([str(run), "--to", "hf://me/birds"])
    assert hub.private == {}


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("hf_unknown", "does not know the token: hf auth login"),
        ("hf_reader", "the token may not write there"),
    ],
)
def test_a_token_that_is_refused_is_one_line(run, hub, monkeypatch, token, reason):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as caught:
        main([str(run), "--to", "hf://me/birds"])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.files == {}


def test_a_hub_that_cannot_be_reached_is_one_line(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        UserError, match="repository that can be reached, me/birds is not: "
    ) as caught:
        main([str(run), "--to", "hf://me/birds"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["birds", "me/birds/more", "me/bi rds", "/birds", ""])
def test_a_name_that_is_no_repository_is_one_line(run, hub, monkeypatch, name):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(UserError, match="--to must be hf://USER/NAME") as caught:
        main([str(run), "--to", f"hf://{name}"])
    assert "\n" not in str(caught.value)
    assert hub.private == {}
