"""What an image server can be asked for, and what it is refused for in one line."""

import pytest

from online_aug.config.loading import load_config
from online_aug.errors import UserError

EDITS = ("generation.engine=openai", "image_server.url=http://here:8000/v1", "method=diffusemix")


def load(tmp_path, *words):
    path = tmp_path / "my.yaml"
    path.write_text("{}")
    words = [word.replace("method=", "method.name=") for word in words]
    return load_config(path, words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("method=diff_mix",),
            "generation.engine must be local for diff_mix, which begins from a noisy image: a "
            "server edits by instruction, as diffusemix does; got openai",
        ),
        (
            ("image_server.url=null",),
            "image_server.url must be the address of an API, such as http://localhost:8000/v1, "
            "with generation.engine openai, got null",
        ),
        (
            ("generation.vae=taesd",),
            "generation.vae must be null with generation.engine openai, got taesd",
        ),
        (
            ("method.keeps_object=true",),
            "saliency.method must be another than diffusion with generation.engine openai, whose "
            "model cannot be looked into",
        ),
    ],
)
def test_what_a_server_cannot_do_is_one_line(tmp_path, words, line):
    with pytest.raises(UserError) as caught:
        load(tmp_path, *EDITS, *words)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://here/v1",
        "http://me:secret@here/v1",
        "http://here/v1?key=1",
        "http:///",
    ],
)
def test_an_address_is_http_without_a_key_in_it(tmp_path, url):
    with pytest.raises(UserError, match=r"^image_server\.url must be "):
        load(tmp_path, *EDITS, f"image_server.url={url}")


def test_a_method_that_composes_may_stand_beside_it(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "generation: {engine: openai}\nimage_server: {url: http://here/v1}\n"
        "method: [{name: diffusemix}, {name: paste}]\nsaliency: {method: spectral_residual}\n"
    )
    assert load_config(path).asks_server


def test_all_gpus_are_free_to_train_unless_one_is_named(tmp_path):
    assert load(tmp_path, *EDITS).wished_devices.generate == ("cpu",)
    assert load(tmp_path, *EDITS, "devices.generate=none").wished_devices.generate == "none"
    assert load(tmp_path, "method=diffusemix").wished_devices.generate == "auto"
