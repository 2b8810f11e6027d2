"""A caller's own transform in the place of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from online_aug.errors import UserError
from online_aug.seeding import library_state


@dataclass(frozen=True)
class OwnTransform:
    """A function of PIL images, as torchvision's and timm's transforms are.

    It may draw from the global random states: they are seeded by the slot and restored.
    """

    function: Callable[[PIL.Image.Image], Any]

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator
    ) -> Shaped[Tensor, " *image"]:
        """Return what the function makes of an image.

        Raises:
            UserError: If that is neither a tensor nor an array.
        """
        seed = int(torch.randint(2**62, (), generator=rng))
        picture = PIL.Image.fromarray(image.permute(1, 2, 0).numpy())
        with library_state(seed):
            made = self.function(picture)
        if isinstance(made, np.ndarray):
            made = torch.from_numpy(made)
        if not isinstance(made, Tensor):
            raise UserError(
                f"transform must make a tensor or an array of a PIL image, got "
                f"{type(made).__name__}: end it with PILToTensor or ToTensor"
            )
        return made
