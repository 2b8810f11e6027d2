"""Retry-After, back-off, and what a key may be."""

from datetime import UTC, datetime

import pytest

from online_aug.config.image_server import ImageServerConfig
from online_aug.errors import UserError
from online_aug.image_server.answers import retry_after_s
from online_aug.image_server.connection import LONGEST_WAIT_S, Connection, back_off_s

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        ("Thu, 01 Jan 2026 12:01:00 GMT", 60),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        *((nonsense, 0) for nonsense in ("", "soon", "-3", "1e9", "²", "Thu, 99 Jan 2026")),
    ],
)
def test_a_server_says_in_seconds_or_by_a_date_how_long_to_wait(text, seconds):
    assert retry_after_s({"retry-after": text}, NOW) == seconds


def test_waits_double_up_to_a_limit_and_chance_spreads_them():
    assert [back_off_s(tried, 0.0) for tried in (0, 1, 2, 3)] == [0.5, 1.0, 2.0, 4.0]
    assert back_off_s(1, 0.999) < 2 * back_off_s(1, 0.0)
    assert back_off_s(10**6, 1.0) == LONGEST_WAIT_S


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\nsecret")
    with pytest.raises(UserError) as caught:
        Connection(ImageServerConfig(url="http://here/v1"))
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "secret" not in str(caught.value)
