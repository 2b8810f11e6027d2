"""A connection to an image server: calls that are tried again while that may help."""

import asyncio
import logging
import os
import random
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from jaxtyping import UInt8

from online_aug.config.image_server import ImageServerConfig
from online_aug.errors import PassingError, UserError, one_line
from online_aug.image_server.answers import (
    MAX_ANSWER_BYTES,
    Answer,
    AskAgainError,
    check_status,
    read_image,
    read_object,
)

T = TypeVar("T")
LONGEST_WAIT_S = 60.0
"""Longest wait between two tries that the server did not ask for."""
LONGEST_ASKED_WAIT_S = 3600.0
"""Longest wait between two tries that a server may ask for."""
CONNECT_S = 10.0
"""Time to reach the server."""
LOOK_S = 30.0
"""Time to say which models there are."""
_log = logging.getLogger(__name__)


class Connection:
    """Open connections to one server; to be used in one event loop."""

    def __init__(self, config: ImageServerConfig, retries: int | None = None) -> None:
        """Take the settings; `retries` replaces their number of tries.

        Raises:
            UserError: If the key cannot be sent.
        """
        assert config.url is not None, "a configuration that asks a server has its address"
        self.url = config.url.rstrip("/")
        self._config = config
        self._retries = config.retries if retries is None else retries
        self._key = os.environ.get(config.key_variable, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(
                f"image_server.key_variable must name a variable of plain letters, got "
                f"{config.key_variable}, which holds others"
            )
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=config.concurrency + 2),
        )
        self._resting_until = 0.0
        self._chance = random.Random()  # waits decide no image, and no seed may make them equal

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def look(
        self, address: str, *, is_optional: bool = False
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Return the JSON object at an address, and the headers of the answer.

        Args:
            address: The whole address.
            is_optional: Whether an answer that is no such object, or denied, counts as empty.

        Raises:
            PassingError: If the server was busy, failed or could not be reached too often.
            UserError: If it answers something else.
        """

        async def ask() -> tuple[Mapping[str, Any], Mapping[str, str]]:
            answer = await self._send("GET", address, LOOK_S)
            try:
                check_status(answer, self.url)
                return read_object(answer), answer.headers
            except (AskAgainError, UserError) as error:
                if is_optional and not (isinstance(error, AskAgainError) and error.is_busy):
                    return {}, {}
                raise

        return await self._persist(ask)

    async def edit(
        self, image: bytes, fields: Mapping[str, str], side: int
    ) -> UInt8[np.ndarray, "r r 3"]:
        """Return the edit of a PNG image.

        Args:
            image: The content of the file.
            fields: The other fields of the form.
            side: Side of the square that is expected, px.

        Raises:
            RefusedError: If the server's rules on content forbid it.
            PassingError: If the server was busy, failed or could not be reached too often.
            UserError: If it answers something else than such an image.
        """

        async def ask() -> UInt8[np.ndarray, "r r 3"]:
            form = {"image": ("image.png", image, "image/png")}
            address = f"{self.url}/images/edits"
            limit_s = self._config.timeout_s
            answer = await self._send("POST", address, limit_s, data=dict(fields), files=form)
            check_status(answer, self.url)
            return read_image(answer, side)

        return await self._persist(ask)

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer, or it was asked too often."""
        for tried in count():
            await self._rest()
            try:
                return await ask()
            except AskAgainError as error:
                if tried >= self._retries or error.wait_s > LONGEST_ASKED_WAIT_S:
                    raise self._given_up(error, tried + 1) from None
                await self._back_off(error, tried)
            except UserError as error:
                raise UserError(self._without_key(str(error))) from None
        raise AssertionError("counting never ends")

    async def _send(self, method: str, address: str, limit_s: float, **form: object) -> Answer:
        # The limit is on the whole answer: a server may send a byte now and then for ever.
        try:
            async with (
                asyncio.timeout(limit_s),
                self._client.stream(method, address, **form) as response,  # type: ignore[arg-type]
            ):
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MAX_ANSWER_BYTES:
                        raise AskAgainError("an answer without an end", is_busy=False)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(status=response.status_code, headers=headers, body=bytes(body))
        except TimeoutError:
            raise AskAgainError(f"no answer for {limit_s:g} s") from None
        except httpx.DecodingError as error:
            raise AskAgainError(f"an answer that is damaged ({error})", is_busy=False) from None
        except httpx.TransportError as error:
            raise AskAgainError(one_line(error)) from None
        except httpx.InvalidURL as error:
            raise UserError(
                f"image_server.url must be an address, got {self.url}: {error}"
            ) from None

    async def _rest(self) -> None:
        while (left_s := self._resting_until - now()) > 0:
            await sleep(left_s)

    async def _back_off(self, error: AskAgainError, tried: int) -> None:
        wait_s = back_off_s(tried, self._chance.random())
        if error.wait_s:  # all are left alone, as long as the server wants
            wait_s = error.wait_s + wait_s / 2
            self._resting_until = max(self._resting_until, now() + error.wait_s)
        _log.warning(
            "image server %s: %s; asked again in %.1f s",
            self.url,
            self._without_key(str(error)),
            wait_s,
        )
        await sleep(wait_s)

    def _given_up(self, error: AskAgainError, tries: int) -> UserError:
        kind = PassingError if error.is_busy else UserError
        rule = "reachable and free" if error.is_busy else "one that answers with images"
        return kind(
            f"image_server.url must be a server that is {rule}, {self.url} was asked {tries} "
            f"{'time' if tries == 1 else 'times'}, last: {self._without_key(str(error))}"
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def back_off_s(tried: int, chance: float) -> float:
    """Return the wait before the next try: it doubles from 1 s, and chance halves it at most.

    Args:
        tried: Number of tries before the one that failed.
        chance: In [0, 1): several that wait are not back at once.
    """
    return min(LONGEST_WAIT_S, 2.0 ** min(tried, 10)) * (0.5 + chance / 2)


def now() -> float:
    """Return the time in seconds, by the clock of the event loop."""
    return asyncio.get_running_loop().time()
