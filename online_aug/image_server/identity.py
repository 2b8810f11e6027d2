"""Identity of an image server: its model and version, which are part of every request."""

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cache.text import nearest_names
from online_aug.config import Config
from online_aug.config.loading import changed
from online_aug.errors import PassingError, UserError, escaped

if TYPE_CHECKING:
    from online_aug.image_server.connection import Connection

# httpx takes a while to import: what needs it is imported where a server is asked.

T = TypeVar("T")
EMBEDDED = "embedded"
"""The default of `generation.model`: of a server the only model it has."""
_TELLING = ("root", "parent", "revision", "pipeline_class", "dit_precision", "vae_precision")
"""Fields of a listed model that decide pixels; others are times and owners."""
_REQUEST_VERSION = 1
"""Raised when other fields are sent, or sent otherwise, for the same request."""
_MODELS_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The model of a server, and what the server says of its version."""

    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model} ({self.version})"


async def identify(connection: "Connection", model: str) -> Identity:
    """Ask a server which model of this name it has, and of what version.

    If it does not tell any version, its address stands for it: images of two such servers are
    never taken for those of one.

    Raises:
        UserError: If there is no such model, or no such server.
    """
    listed, headers = await connection.look(f"{connection.url}/models")
    name, entry = _chosen(listed, model, connection.url)
    told, _ = await connection.look(_beside(connection.url, "version"), is_optional=True)
    facts = dict(_facts(entry, told, headers))
    version = ", ".join(f"{key} {value}" for key, value in facts.items())
    return Identity(model=name, version=version or f"at {connection.url}")


def settle_server(config: Config) -> Config:
    """Return the configuration with the server's model and version in the place of null.

    Raises:
        UserError: If the server cannot be reached, or does not have the model.
    """
    server, model = config.image_server, config.generation.model
    if server.version is not None and model != EMBEDDED:
        return config
    from online_aug.image_server.connection import Connection

    async def ask() -> Identity:
        async with Connection(server, retries=0) as connection:
            return await identify(connection, model)

    try:
        found = in_own_loop(ask())
    except PassingError as error:
        raise UserError(
            f"{error}; to serve what is in the cache without the server, give generation.model and "
            "image_server.version as config.yaml of an earlier run has them"
        ) from None
    config = changed(config, "generation", model=found.model)
    return changed(config, "image_server", version=server.version or found.version)


def in_own_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; in a thread of its own if this one has a loop, as that of a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def server_fingerprint(config: Config) -> str:
    """Return the digest of all that decides the pixels of a server's images beside the request."""
    decides = [
        *("openai", _REQUEST_VERSION, config.generation.model, config.generation.revision),
        *(config.image_server.version, sorted(config.image_server.extra_fields)),
    ]
    return hashlib.blake2b(json.dumps(decides).encode(), digest_size=16).hexdigest()


def _chosen(listed: Mapping[str, Any], model: str, url: str) -> tuple[str, Mapping[str, Any]]:
    data = listed.get("data")
    entries = data if isinstance(data, list) else []
    models = {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }
    if not models:
        raise UserError(
            f"image_server.url must be the address of an images API, {url}/models lists no model"
        )
    if model == EMBEDDED and len(models) == 1:
        return next(iter(models.items()))
    if model in models:
        return model, models[model]
    some = nearest_names(model, models, limit=_MODELS_NAMED) or list(models)[:_MODELS_NAMED]
    raise UserError(
        f"generation.model must be a model of {url} ({escaped(', '.join(some))}"
        f"{', ...' if len(models) > len(some) else ''}), got {model}"
    )


def _facts(
    entry: Mapping[str, Any], told: Mapping[str, Any], headers: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    found = [("version", told.get("version")), ("api", headers.get("openai-version"))]
    found += [(key, entry.get(key)) for key in _TELLING if entry.get(key) != entry["id"]]
    for key, value in found:
        if isinstance(value, str) and value.strip():
            yield key, escaped(" ".join(value.split()))


def _beside(url: str, name: str) -> str:
    """Return the address of something that is not below /v1."""
    return f"{url.removesuffix('/v1')}/{name}"
