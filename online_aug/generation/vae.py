"""What an encoder said of each image: the newest in memory, the rest on disk while they fit.

Between pixels and latents: each source encoded once, the same result in whatever company.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float, UInt8
from torch import Tensor

MEMORY_BYTES = 2**30
LEFT_FREE_BYTES = 2**30
"""Of the disk, which the cache and others need more."""
_log = logging.getLogger(__name__)


class LatentStore:
    """Tensors of one shape by a digest, those used last in memory."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        """Keep nothing on disk unless told where."""
        self._memory_bytes = memory_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._size = 0
        self._scratch: ScratchFile | None = None

    def spill_to(self, scratch: "ScratchFile") -> None:
        """Keep on disk what memory has no room for."""
        self._scratch = scratch

    def get(self, key: bytes) -> Float[Tensor, "c h w"] | None:
        """What was put, or None where it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        return None if self._scratch is None else self._scratch.get(key)

    def put(self, key: bytes, tensor: Float[Tensor, "c h w"]) -> None:
        """Keep a tensor, as the one that was used last; the first go to the disk."""
        if key not in self._kept:
            self._size += tensor.nbytes
        self._kept[key] = tensor
        while self._size > self._memory_bytes and len(self._kept) > 1:
            oldest, dropped = self._kept.popitem(last=False)
            self._size -= dropped.nbytes
            if self._scratch is not None:
                self._scratch.put(oldest, dropped)

    def close(self) -> None:
        """Give up what is on disk."""
        if self._scratch is not None:
            self._scratch.close()


class ScratchFile:
    """Tensors of one shape by a digest in a file without a name, which ends with the process.

    Nobody else can open it, so neither another process nor a later run reads what is not its own.
    It is full where its limit is, and what it has then stays. Where the disk has no more room, or
    cannot be written or read, it gives all of its room back and keeps nothing from then on.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Write nothing yet.

        Args:
            folder: Which disk; it needs to be there with the first tensor.
            max_bytes: What the file may take.
        """
        self._folder, self._max_bytes = folder, max_bytes
        self.file: IO[bytes] | None = None
        """None before the first tensor and after the end."""
        self._shape = torch.Size()
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Tensors that are kept."""
        return len(self._numbers)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return 0 if self.file is None else os.fstat(self.file.fileno()).st_size

    def put(self, key: bytes, tensor: Float[Tensor, "c h w"]) -> None:
        """Keep a tensor where there is room; float32, of the shape of the first."""
        size, number = tensor.nbytes, len(self._numbers)
        if key in self._numbers or (number + 1) * size > self._max_bytes:
            return
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                self._shape = tensor.shape
            _check_room(self._folder, size)
            _write(self.file.fileno(), _bytes(tensor.contiguous()), number * size)
        except OSError as error:
            self._give_up(error)
        else:
            self._numbers[key] = number

    def get(self, key: bytes) -> Float[Tensor, "c h w"] | None:
        """What was put, or None where it is not kept."""
        if key not in self._numbers or self.file is None:
            return None
        found = torch.empty(self._shape)
        try:
            _read(self.file.fileno(), _bytes(found), self._numbers[key] * found.nbytes)
        except OSError as error:
            self._give_up(error)
            return None
        return found

    def close(self) -> None:
        """Give the room back; nothing is kept from then on."""
        self._max_bytes = 0
        self._numbers.clear()
        if self.file is not None:
            self.file.close()
            self.file = None

    def _give_up(self, error: OSError) -> None:
        self.close()
        _log.warning(
            "latents are not kept on disk from now on (%s: %s): sources are encoded again",
            self._folder,
            error.strerror or error,
        )


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.numpy().data.cast("B")


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < LEFT_FREE_BYTES + needed:
        raise OSError("the disk is nearly full")


def _write(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _read(file: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(file, [into], offset)
        if not count:
            raise OSError("the file ends early")
        into, offset = into[count:], offset + count


TOGETHER = 4
"""Images a call of encoder or decoder. Fewer are filled up: another shape would round otherwise."""


class Moments(NamedTuple):
    """What an encoder says of an image: a Gaussian over latents, or one latent."""

    mean: Float[Tensor, "c h w"]
    std: Float[Tensor, "c h w"] | None
    """None where the encoder gives one latent, as a tiny autoencoder's does."""

    def sample(self, rng: torch.Generator) -> Float[Tensor, "c h w"]:
        """A latent drawn from the Gaussian; the one there is draws nothing."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * torch.randn(self.mean.shape, generator=rng)


class Autoencoder:
    """A VAE on its device that keeps what it has encoded, as long as there is room."""

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny, store: LatentStore | None = None
    ) -> None:
        self._vae = vae
        self._is_tiny = isinstance(vae, AutoencoderTiny)
        self.store = store or LatentStore()
        self.scaling_factor = float(vae.config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> list[Moments]:
        """The moments of each image, on the CPU; computed once an image while they are kept."""
        wanted = {_digest(image): image for image in images}
        found = {key: kept for key in wanted if (kept := self.store.get(key)) is not None}
        missing = [key for key in wanted if key not in found]
        made = self._encoded([wanted[key] for key in missing])
        for key, encoded in zip(missing, made, strict=True):
            found[key] = encoded.clone()  # itself a part of its batch, which would be kept too
            self.store.put(key, found[key])
        return [self._moments(found[_digest(image)]) for image in images]

    @torch.no_grad()
    def decode(self, latents: Sequence[Float[Tensor, "c h w"]]) -> list[Float[Tensor, "3 h2 w2"]]:
        """Images in [0, 1] on the CPU, NaN where the network made NaN."""

        def decoded(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
            scaled = (batch / self.scaling_factor).to(self._vae.dtype)
            images: Tensor = self._vae.decode(scaled, return_dict=False)[0]
            return (images.float() / 2 + 0.5).clamp(0, 1).cpu()

        return list(_in_groups(decoded, latents))

    def _encoded(self, images: Sequence[UInt8[Tensor, "3 h w"]]) -> list[Tensor]:
        def encoded(batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b moments h2 w2"]:
            pixels = (batch.to(self._vae.device).float() / 127.5 - 1).to(self._vae.dtype)
            said = self._vae.encode(pixels)
            if self._is_tiny:
                latents: Tensor = said.latents
                return latents.float().cpu()
            gaussian = said.latent_dist
            return torch.cat([gaussian.mean, gaussian.std], dim=1).float().cpu()

        return _in_groups(encoded, images)

    def _moments(self, encoded: Float[Tensor, "moments h w"]) -> Moments:
        return Moments(encoded, None) if self._is_tiny else Moments(*encoded.chunk(2))


def _in_groups(function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """A function of batches, over tensors of one shape, in batches of one size."""
    results: list[Tensor] = []
    for first in range(0, len(tensors), TOGETHER):
        group = list(tensors[first : first + TOGETHER])
        filled = group + group[-1:] * (TOGETHER - len(group))
        results += function(torch.stack(filled))[: len(group)]
    return results


def _digest(image: UInt8[Tensor, "3 h w"]) -> bytes:
    shape = repr(tuple(image.shape)).encode()
    pixels = image.contiguous().numpy().tobytes()
    return hashlib.blake2b(shape + pixels, digest_size=16).digest()
