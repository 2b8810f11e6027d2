"""The keys of `image_server`, and what an image server cannot be used for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from online_aug.methods import find_method
from online_aug.settings import AsTuple, Count, Positive, Section, Text

if TYPE_CHECKING:
    from online_aug.config import Config

Extra = Literal[
    "response_format",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "image_guidance_scale",
]


class ImageServerConfig(Section):
    """The image server that makes the images with `generation.engine: openai`."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")] | None = None
    """Address of its API, such as `http://localhost:8000/v1`: the part before `/images/edits`."""
    version: Text | None = None
    """What the server says of its version and of its model's; null asks it. Part of the request.
    `config.yaml` in the run directory has the answer, with which images can be served while the
    server is off (`devices.generate: none`)."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "OPENAI_API_KEY"
    """Environment variable with the key that the server asks for; without it none is sent."""
    extra_fields: Annotated[tuple[Extra, ...], AsTuple] = (
        *("response_format", "seed", "num_inference_steps", "guidance_scale"),
    )
    """Fields sent beside image, prompt, model, number and size. `true_cfg_scale` is Qwen's name of
    the guidance scale. A server that refuses some, such as OpenAI's own, gets fewer, or `[]`."""
    concurrency: Count = 8
    """Most images asked for at a time."""
    timeout_s: Positive = 300.0
    """Seconds to wait for an image before it is asked for again."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Times to ask again after a timeout, a lost connection, or an answer that says busy (429),
    failed (5xx) or nothing of use; the wait doubles from 1 s, and is at least what the server
    asks for (Retry-After)."""


def server_rules(config: "Config") -> Iterator[str]:
    """Yield a line for each rule that is broken."""
    made = config.generation
    if made.engine == "local":
        return
    if config.image_server.url is None:
        yield (
            "image_server.url must be the address of an API, such as http://localhost:8000/v1, "
            "with generation.engine openai, got null"
        )
    for settings in config.methods:
        method = find_method(settings.name)
        if method.generates and method.pipeline != "instruct":
            yield (
                f"generation.engine must be local for {settings.name}, which begins from a noisy "
                "image: a server edits by instruction, as diffusemix does; got openai"
            )
    for key in ("vae", "few_step_adapter"):
        if (value := getattr(made, key)) is not None:
            yield f"generation.{key} must be null with generation.engine openai, got {value}"
    if config.uses_saliency and config.saliency.chosen_method == "diffusion":
        yield (
            "saliency.method must be another than diffusion with generation.engine openai, whose "
            "model cannot be looked into"
        )
