"""Which model and version a server has, and how they come into the configuration and the plan."""

import asyncio

import pytest
from experiment_samples import make_config, make_experiment

from online_aug.config.loading import changed, resolved_yaml
from online_aug.diffusion.compatibility import settle
from online_aug.errors import UserError
from online_aug.image_server.identity import in_own_loop, server_fingerprint


@pytest.fixture
def config_of(tmp_path, server):
    """A configuration that asks the server; the keywords are keys of `image_server`."""

    def make(model="embedded", resolution=None, **image_server):
        return make_config(
            tmp_path,
            model,
            method={"name": "diffusemix"},
            generation={"engine": "openai", "model": model, "resolution": resolution},
            image_server={"url": server.url, **image_server},
        )

    return make


def version_by(config_of, server, **tells):
    for name, value in tells.items():
        setattr(server, name, value)
    return settle(config_of()).image_server.version


def test_the_only_model_of_a_server_and_its_version_stand_in_the_settled_configuration(
    config_of, server
):
    config = settle(config_of())
    assert config.generation.model == "editor-1"
    assert config.image_server.version == "version 0.9.1, root hub/editor"
    assert (config.generation.resolution, config.generation.num_inference_steps) == (512, 4)
    assert settle(config) == config


def test_a_version_is_whatever_the_server_tells_that_decides_pixels(config_of, server):
    sglang = {"root": "editor-1", "dit_precision": "bf16", "vae_precision": "fp32", "num_gpus": 8}
    assert (
        version_by(config_of, server, version=None, facts=sglang)
        == "dit_precision bf16, vae_precision fp32"
    )
    hostile = {"root": "a\x1b[31m\nb", "parent": 7}
    assert version_by(config_of, server, facts=hostile) == "root a\\x1b[31m b"


def test_the_address_stands_for_a_version_that_a_server_does_not_tell(config_of, server):
    assert version_by(config_of, server, version=None, facts={}) == f"at {server.url}"


def test_a_named_model_must_be_one_that_the_server_has(config_of, server):
    server.models = ["editor-1", "editor-2"]
    assert settle(config_of("editor-2")).generation.model == "editor-2"
    with pytest.raises(UserError) as caught:
        settle(config_of("editor-3"))
    assert str(caught.value) == (
        f"generation.model must be a model of {server.url} (editor-2, editor-1), got editor-3"
    )
    with pytest.raises(UserError, match=r"\(editor-1, editor-2\), got embedded$"):
        settle(config_of())


@pytest.mark.parametrize("models", [[], [7], [None]])
def test_a_list_without_a_model_is_one_line(config_of, server, models):
    server.models = models
    with pytest.raises(UserError, match=r"/models lists no model$"):
        settle(config_of())


def test_without_the_server_what_it_is_must_be_given(config_of, server):
    there = settle(config_of())
    gone = server.url.rpartition(":")[0] + ":9/v1"
    with pytest.raises(UserError) as caught:
        settle(config_of(url=gone))
    assert "was asked 1 time, last: " in str(caught.value)
    assert "\n" not in str(caught.value)
    given = changed(there, "image_server", url=gone)
    assert settle(given) == given
    assert server_fingerprint(given) == server_fingerprint(there)


def test_requests_name_model_version_and_what_is_sent_but_not_where_and_how(
    config_of, server, tmp_path
):
    config = settle(config_of(resolution=64))
    same = changed(config, "image_server", url="http://other/v1", concurrency=1, retries=0)
    others = [
        changed(config, "image_server", version="0.9.2"),
        changed(config, "image_server", extra_fields=["seed"]),
        changed(config, "generation", model="editor-2"),
        changed(config, "generation", revision="mine"),
    ]
    assert server_fingerprint(same) == server_fingerprint(config)
    digests = {server_fingerprint(each) for each in [config, *others]}
    assert len(digests) == len(others) + 1


def test_the_plan_asks_for_other_images_once_the_server_has_changed(config_of, server, tmp_path):
    def keys():
        config = settle(config_of(resolution=64))
        plan = make_experiment(
            tmp_path,
            config.generation.model,
            method={"name": "diffusemix"},
            generation={"engine": "openai", "model": config.generation.model, "resolution": 64},
            image_server=config.image_server.model_dump(mode="json"),
        ).plan
        return {request.key for request in plan}

    first = keys()
    assert keys() == first
    server.version = "0.9.2"
    assert not keys() & first


def test_a_server_is_asked_from_a_notebook_too():
    async def cell():
        return in_own_loop(asyncio.sleep(0, "answer"))

    assert asyncio.run(cell()) == "answer"


def test_a_run_that_makes_no_images_does_not_ask(config_of, server, tmp_path):
    config = config_of(url="http://127.0.0.1:9/v1")
    assert settle(changed(config, "mixing", synthetic_probability=0)).image_server.version is None


def test_the_key_is_in_no_configuration(config_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "sk-secret" not in resolved_yaml(settle(config_of()))
