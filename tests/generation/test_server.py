"""The engine that asks an image server: its images, and all that a server may do to it."""

import io
import logging
import threading

import numpy as np
import pytest
import torch
from edit_server import HANG, KEY, answer_with, edited
from PIL import Image
from request_samples import make_plan, make_sources

from online_aug.config import Config
from online_aug.errors import PassingError, UserError
from online_aug.generation.gate import Gate
from online_aug.generation.server import REFUSED, ServerEngine
from online_aug.image_server import connection

SIDE = 64
PLAN = make_plan(make_sources(6), 2, "diffusemix")
STARTS = {
    request.source_digest: torch.randint(
        0, 256, (4, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
    )
    for number, request in enumerate(PLAN)
}


def prepare(requests):
    return torch.stack([STARTS[request.source_digest] for request in requests])


def settled(server, **image_server):
    return Config.model_validate(
        {
            "method": {"name": "diffusemix"},
            "generation": {"engine": "openai", "model": "editor-1", "resolution": SIDE},
            "image_server": {
                **{"url": server.url, "retries": 2, "timeout_s": 20},
                "version": f"version {server.version}, root hub/editor",
                **image_server,
            },
        }
    )


@pytest.fixture
def engine_of(server):
    engines = []

    def open_engine(**image_server):
        engines.append(ServerEngine(settled(server, **image_server)))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def made_by(engine, requests=PLAN):
    """Make all requests as the generation loop does."""
    waiting, found = list(requests), []
    while waiting or engine.in_flight:
        while waiting and engine.room >= 4:
            engine.submit(waiting[:4], prepare)
            del waiting[:4]
        found += engine.step()
    return {one.request: one for one in found}


def steps_until_one_gives_images(engine):
    while not engine.step():
        pass


def pixels_of(finished):
    return (finished.image * 255).round().byte().permute(1, 2, 0).numpy()


def test_an_image_is_the_edit_that_the_server_makes_of_the_prepared_source(server, engine_of):
    made = made_by(engine_of())
    assert made.keys() == set(PLAN)
    assert {one.verdict.reason for one in made.values()} == {None}
    by_words = {(form["prompt"], form["seed"]): form for form in server.forms}
    for request, one in made.items():
        form = by_words[request.prompt, str(request.noise_seed % 2**31)]
        assert np.array_equal(pixels_of(one), np.asarray(edited(form)))
        sent = np.asarray(Image.open(io.BytesIO(form["image"])))
        assert np.array_equal(sent, STARTS[request.source_digest][:3].permute(1, 2, 0).numpy())


def test_the_form_has_the_fields_of_the_api_and_those_that_are_asked_for(server, engine_of):
    made_by(engine_of(), PLAN[:1])
    (form,) = server.forms
    request = PLAN[0]
    assert form.pop("image").startswith(b"\x89PNG")
    assert form == {
        **{"prompt": request.prompt, "model": "editor-1", "n": "1", "size": "64x64"},
        **{"response_format": "b64_json", "seed": str(request.noise_seed % 2**31)},
        **{"num_inference_steps": "10", "guidance_scale": "2.5"},
    }
    made_by(engine_of(extra_fields=[]), PLAN[:1])
    assert server.forms[-1].keys() == {"image", "prompt", "model", "n", "size"}
    made_by(engine_of(extra_fields=["true_cfg_scale", "image_guidance_scale"]), PLAN[:1])
    assert (server.forms[-1]["true_cfg_scale"], server.forms[-1]["image_guidance_scale"]) == (
        "2.5",
        "1.5",
    )


def test_no_more_are_asked_for_at_a_time_than_allowed_and_as_many(server, engine_of):
    server.seconds = 0.1
    made = made_by(engine_of(concurrency=3))
    assert len(made) == len(PLAN)
    assert server.most_at_once == 3


def test_blank_images_are_rejected_like_those_of_a_model_of_our_own(server, engine_of):
    server.answers = [(200, answer_with(Image.new("RGB", (SIDE, SIDE), "white")))]
    made = made_by(engine_of(concurrency=1))
    assert [one.verdict.reason for one in made.values()].count("white") == 1


def test_what_the_server_s_rules_forbid_is_rejected_and_the_rest_made(server, engine_of):
    body = {"error": {"message": "no birds here", "code": "moderation_blocked"}}
    server.answers = [(400, body)]
    made = made_by(engine_of())
    reasons = [one.verdict.reason for one in made.values()]
    assert (reasons.count(REFUSED), reasons.count(None)) == (1, len(PLAN) - 1)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(500, id="failed"),
        pytest.param(503, id="starting"),
        pytest.param((429, {"error": {"message": "slower"}}, {"Retry-After": "0"}), id="busy"),
        pytest.param((200, b"<html>hello</html>"), id="no JSON"),
        pytest.param((200, {"data": [{"b64_json": "aGVsbG8="}]}), id="no image"),
        pytest.param((200, {"data": []}), id="nothing"),
        pytest.param((200, b'{"data": [', {"Content-Encoding": "gzip"}), id="damaged"),
    ],
)
def test_after_one_bad_answer_the_image_is_asked_for_again(server, engine_of, answer):
    server.answers = [answer]
    made = made_by(engine_of(), PLAN[:4])
    assert {one.verdict.reason for one in made.values()} == {None}
    assert len(server.forms) == 5


def test_a_busy_server_is_left_alone_by_all_as_long_as_it_asks(server, engine_of, monkeypatch):
    clock, asked_at = [0.0], []

    async def sleep(seconds):
        clock[0] += seconds

    def busy(_):
        asked_at.append(clock[0])
        return (429, {"error": {"message": "wait"}}, {"Retry-After": "30"})

    monkeypatch.setattr(connection, "sleep", sleep)
    monkeypatch.setattr(connection, "now", lambda: clock[0])
    server.answers = [busy, lambda _: asked_at.append(clock[0]) or 200]
    made_by(engine_of(concurrency=1), PLAN[:1])
    assert asked_at == [0.0, pytest.approx(30.005)]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (500, PassingError, "must be a server that is reachable and free, URL was asked 3 times, "
         "last: HTTP 500 (told to, editor-1)"),
        (HANG, PassingError, "must be a server that is reachable and free, URL was asked 3 times, "
         "last: no answer for 0.3 s"),
        ((200, b"<html>\x1b[31m"), UserError, "must be a server that is one that answers with "
         "images, URL was asked 3 times, last: an answer that is no JSON object: '<html>"),
        ((200, {"data": [{"b64_json": "aGVsbG8="}]}), UserError, "last: an answer without an image "
         "(image of the answer cannot be read: it is not an image of a known format)"),
        ((429, {}, {"Retry-After": "86400"}), PassingError, "URL was asked 1 time, last: HTTP 429"),
    ],
)  # fmt: skip
def test_a_server_that_never_makes_an_image_is_one_line(server, engine_of, answer, kind, message):
    server.answers = [answer] * 99
    with pytest.raises(UserError) as caught:
        made_by(engine_of(concurrency=1, timeout_s=0.3), PLAN[:1])
    assert type(caught.value) is kind
    assert message.replace("URL", server.url) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (401, "image_server.key_variable must name a variable with a key that URL takes: HTTP 401"),
        (404, "image_server.url must be the address of an images API, mostly one that ends in /v1"),
        ((302, b"", {"Location": "http://elsewhere"}), "image_server.url must be the address of"),
        ((422, {"detail": "no size 64x64"}), "URL answers HTTP 422 (no size 64x64); see "),
        ((200, answer_with(Image.new("RGB", (128, 96)))), "generation.resolution must be a side of "
         "squares that the image server makes, asked for 64x64, got 128x96"),
        ((200, {"data": [{"url": "http://elsewhere/1.png"}]}), "image_server.extra_fields must hold"
         " response_format"),
    ],
)  # fmt: skip
def test_what_no_second_try_mends_is_told_at_once(server, engine_of, answer, message):
    server.answers = [answer]
    with pytest.raises(UserError) as caught:
        made_by(engine_of(), PLAN[:1])
    assert message.replace("URL", server.url) in str(caught.value)
    assert len(server.forms) == 1


def test_nobody_at_the_address_is_one_line(server, engine_of):
    gone = server.url.rpartition(":")[0] + ":9/v1"
    with pytest.raises(PassingError, match=r"asked 3 times, last: .*[Cc]onnect"):
        made_by(engine_of(url=gone), PLAN[:1])


def test_images_of_a_server_that_has_changed_are_thrown_away(server, engine_of):
    engine = engine_of(concurrency=1)
    made_by(engine, PLAN[:4])

    def change(_):
        server.version = "0.9.2"
        return 200

    server.answers = [change]
    engine.submit(PLAN[4:8], prepare)
    with pytest.raises(UserError) as caught:
        steps_until_one_gives_images(engine)
    assert "has editor-1 (version 0.9.2, root hub/editor), and the images of this plan are of " in (
        str(caught.value)
    )


def test_an_engine_for_another_version_makes_nothing(server, engine_of):
    with pytest.raises(UserError, match=r"^image_server\.version must be that of the server"):
        made_by(engine_of(version="version 0.1"), PLAN[:1])
    assert server.forms == []


def test_what_is_in_flight_can_be_dropped_at_any_time_and_the_engine_goes_on(server, engine_of):
    engine = engine_of()
    server.answers = [HANG] * 4
    engine.submit(PLAN[:4], prepare)
    while len(server.forms) < 4:
        assert engine.step() == []
    engine.drop()
    assert (engine.in_flight, engine.step()) == (0, [])
    assert len(made_by(engine, PLAN[4:])) == len(PLAN) - 4


def test_an_engine_that_waits_for_a_hanging_server_closes(server):
    engine = ServerEngine(settled(server))
    server.answers = [HANG] * 4
    engine.submit(PLAN[:4], prepare)
    while not server.forms:
        engine.step()
    engine.close()
    assert not engine._thread.is_alive()


def test_an_error_of_preparing_comes_out(server, engine_of):
    def broken(requests):
        raise OSError("the disk is gone")

    engine = engine_of()
    engine.submit(PLAN[:2], broken)
    with pytest.raises(OSError, match="the disk is gone"):
        steps_until_one_gives_images(engine)


def test_the_key_is_sent_and_never_said(server, engine_of, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    echo = (500, {"error": {"message": f"wrong key {KEY}"}})
    server.answers = [echo] * 99
    with pytest.raises(PassingError) as caught:
        made_by(engine_of(), PLAN[:1])
    assert server.keys == [f"Bearer {KEY}"] * 3
    assert "wrong key ***" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text
    assert "wrong key ***" in caplog.text


def test_a_key_that_cannot_be_sent_leaves_no_thread_behind(server, engine_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    before = threading.active_count()
    with pytest.raises(UserError, match=r"^image_server\.key_variable must name a variable of pl"):
        engine_of()
    assert threading.active_count() == before


def test_no_key_is_sent_if_there_is_none(server, engine_of):
    made_by(engine_of(), PLAN[:1])
    assert server.keys == [None]


def test_a_request_that_is_no_edit_is_a_mistake_of_the_caller(server, engine_of):
    with pytest.raises(ValueError, match=r"^a request must be an edit by an instruction"):
        engine_of().submit(make_plan(make_sources(1), 1), prepare)


def test_the_gate_judges(server):
    engine = ServerEngine(settled(server), Gate())
    try:
        assert engine.room >= 4
        assert (
            made_by(engine, PLAN[:1])[PLAN[0]].verdict
            == Gate()([PLAN[0]], made_by(engine, PLAN[:1])[PLAN[0]].image[None])[0]
        )
    finally:
        engine.close()
