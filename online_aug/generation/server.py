"""From requests to images by a running image server, in the place of a model of our own."""

import asyncio
import io
import logging
import queue
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.generation.gate import Finished, Gate, Verdict
from online_aug.generation.inputs import Prepare
from online_aug.image_server.answers import RefusedError
from online_aug.image_server.connection import Connection
from online_aug.image_server.identity import Identity, identify
from online_aug.request import GenerationRequest
from online_aug.settings import decided

STEP_S = 0.1
"""Longest wait for an image in a step: a signal is obeyed between two steps."""
REFUSED = "refused by server"
"""Why a request is rejected that the server's rules on content forbid."""
AHEAD = 8
"""Requests that wait, prepared, beside those the server works on."""
_NEVER = -1.0
_SEEDS = 2**31
"""Servers take seeds of 32 bits with a sign."""
_log = logging.getLogger(__name__)


class _Made(NamedTuple):
    request: GenerationRequest
    pixels: UInt8[np.ndarray, "r r 3"] | None
    """None if the server refused it."""


class ServerEngine:
    """Asks an image server for several images at a time; see `ImageGenerator`.

    An image is given out only after the server has said once more that it still has the model and
    version that the requests name.
    """

    def __init__(self, config: Config, gate: Gate | None = None) -> None:
        """Take the server of a settled configuration; it is asked who it is before any image.

        Args:
            config: Names the server, its model and version.
            gate: Judges finished images; None rejects only those that are blank.

        Raises:
            UserError: If the key cannot be sent.
        """
        server = config.image_server
        self.slots = server.concurrency
        self.fast_paths = f"{config.generation.model} at {server.url}"
        self._config, self._gate = config, gate or Gate()
        self._identity = Identity(model=config.generation.model, version=decided(server.version))
        self._connection = Connection(server)
        self._in_flight = 0
        self._done: queue.SimpleQueue[_Made | BaseException] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._calls: set[Future[None]] = set()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._asking = asyncio.Semaphore(self.slots)
        self._looking, self._looked_at = asyncio.Lock(), _NEVER
        _log.info("%s: %d images at a time", self._identity, self.slots)

    @property
    def in_flight(self) -> int:
        """How many requests were taken in whose images have not come out."""
        return self._in_flight

    @property
    def room(self) -> int:
        """How many more requests keep the server busy."""
        return max(0, self.slots + AHEAD - self._in_flight)

    def submit(self, requests: Sequence[GenerationRequest], prepare: Prepare) -> None:
        """Take requests in; their preparation begins at once, in another thread.

        Raises:
            ValueError: If a request is no edit by an instruction.
        """
        for request in requests:
            if request.image_guidance_scale is None or request.strength != 1:
                raise ValueError(
                    "a request must be an edit by an instruction at strength 1 for an image "
                    f"server, got {request.method} at {request.strength}"
                )
        self._in_flight += len(requests)
        call = asyncio.run_coroutine_threadsafe(
            self._make(list(requests), prepare, self._done), self._loop
        )
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def step(self) -> list[Finished]:
        """Wait a moment for images, and return those that have come, judged.

        Raises:
            UserError: If the server answers nothing of use, or has changed.
            PassingError: If it could not be reached, or was busy, too often.
            Exception: If preparing raised it.
        """
        made = self._collect()
        self._in_flight -= len(made)
        if not made and self._error is not None:
            error, self._error = self._error, None
            raise error
        requests = [one.request for one in made if one.pixels is not None]
        images = [_to_tensor(one.pixels) for one in made if one.pixels is not None]
        verdicts = self._gate(requests, torch.stack(images)) if images else []
        refused = [_refused(one.request) for one in made if one.pixels is None]
        return [*map(Finished, requests, images, verdicts), *refused]

    def drop(self) -> None:
        """Forget what is in flight; the server is told by the end of the connections."""
        for call in [*self._calls]:
            call.cancel()
        self._done = queue.SimpleQueue()  # what is cancelled may still put into the old one
        self._error, self._in_flight = None, 0

    def close(self) -> None:
        """Forget what is in flight, close the connections and end the threads."""
        self.drop()
        self._preparing.shutdown(cancel_futures=True)
        self._run(self._connection.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _collect(self) -> list[_Made]:
        made: list[_Made] = []
        try:
            found = self._done.get(timeout=0 if self._error else STEP_S)
            while True:
                if isinstance(found, _Made):
                    made.append(found)
                else:
                    self._error = self._error or found
                found = self._done.get_nowait()
        except queue.Empty:
            return made

    async def _make(
        self,
        requests: Sequence[GenerationRequest],
        prepare: Prepare,
        done: "queue.SimpleQueue[_Made | BaseException]",
    ) -> None:
        try:
            await self._look_since(_NEVER)
            files = await self._loop.run_in_executor(
                self._preparing, lambda: [_to_png(image) for image in prepare(requests)]
            )
        except Exception as error:
            done.put(error)
            return
        await asyncio.gather(*(self._edit(*one, done) for one in zip(requests, files, strict=True)))

    async def _edit(
        self,
        request: GenerationRequest,
        file: bytes,
        done: "queue.SimpleQueue[_Made | BaseException]",
    ) -> None:
        try:
            pixels = await self._ask(request, file)
            await self._look_since(self._loop.time())
        except Exception as error:
            async with self._looking:  # images that came before are given out first
                done.put(error)
        else:
            done.put(_Made(request, pixels))

    async def _ask(
        self, request: GenerationRequest, file: bytes
    ) -> UInt8[np.ndarray, "r r 3"] | None:
        async with self._asking:
            try:
                return await self._connection.edit(file, self._fields(request), request.resolution)
            except RefusedError as error:
                _log.warning("%r: %s", request.prompt, error)
                return None

    async def _look_since(self, time_s: float) -> None:
        """Return once the server was asked who it is after a time; many wait for one answer."""
        async with self._looking:
            if self._looked_at <= time_s:
                began_at = self._loop.time()
                await self._look()
                self._looked_at = began_at

    async def _look(self) -> None:
        found = await identify(self._connection, self._identity.model)
        if found != self._identity:
            raise UserError(
                f"image_server.version must be that of the server, {self._connection.url} has "
                f"{found}, and the images of this plan are of {self._identity}; another "
                "run makes a plan of what it has now"
            )

    def _fields(self, request: GenerationRequest) -> dict[str, str]:
        guidance = str(request.guidance_scale)
        extras = {
            "response_format": "b64_json",
            "seed": str(request.noise_seed % _SEEDS),
            "num_inference_steps": str(request.num_inference_steps),
            "guidance_scale": guidance,
            "true_cfg_scale": guidance,
            "image_guidance_scale": str(request.image_guidance_scale),
        }
        return {
            "prompt": request.prompt,
            "model": self._identity.model,
            "n": "1",
            "size": f"{request.resolution}x{request.resolution}",
            **{name: extras[name] for name in self._config.image_server.extra_fields},
        }


def _to_png(image: UInt8[Tensor, "_ r r"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[:3].permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def _to_tensor(pixels: UInt8[np.ndarray, "r r 3"]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _refused(request: GenerationRequest) -> Finished:
    nothing = torch.zeros(3, request.resolution, request.resolution)
    return Finished(request, nothing, Verdict(reason=REFUSED))
