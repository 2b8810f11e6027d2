"""A set of images in order, a batch at a time."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from online_aug.dataloader.image_sets import ImageSet
from online_aug.dataloader.images import BadImageError
from online_aug.dataloader.transforms import EvalTransform

MAX_THREADS = 8
BATCHES_AHEAD = 2

Pixels = UInt8[Tensor, "3 h w"]


def ordered_batches(
    images: ImageSet, transform: EvalTransform, batch_size: int, *, skips_bad_images: bool
) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
    """Images with their places in the set; threads decode ahead, which needs no start-up.

    Raises:
        BadImageError: If an image cannot be read and such images are not skipped.
    """
    loaded_as = partial(_load, images, transform, skips_bad_images)
    starts = deque(range(0, len(images), batch_size))
    waiting: deque[list[tuple[int, Future[Pixels | None]]]] = deque()
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        while starts or waiting:
            while starts and len(waiting) <= BATCHES_AHEAD:
                start = starts.popleft()
                indices = range(start, min(start + batch_size, len(images)))
                waiting.append([(index, pool.submit(loaded_as, index)) for index in indices])
            done = [(index, future.result()) for index, future in waiting.popleft()]
            good = [(index, image) for index, image in done if image is not None]
            if good:
                yield torch.stack([image for _, image in good]), torch.tensor([i for i, _ in good])


def _load(images: ImageSet, transform: EvalTransform, skips: bool, index: int) -> Pixels | None:
    try:
        pixels = images.load(index)
    except BadImageError:
        if skips:
            return None
        raise
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return transform(image)
