"""Distil an embedded model to few steps: a LoRA whose one step is many steps of the model.

The LoRA learns to predict from any state of a trajectory the clean latent at which it ends. That is
what a latent consistency model predicts (arXiv:2310.04378), so it is sampled like one. Published
ones learn it from their own predictions one step further on, for want of time to denoise to the
end; a model as small as ours affords the ends themselves. As in LCM-LoRA (arXiv:2311.05556) the
result is added to models that were fine-tuned on something else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from online_aug.diffusion.adapters import LORA_FILE
from online_aug.diffusion.directory import scheduler_settings
from online_aug.diffusion.few_steps import GUIDANCE, UNGUIDED
from online_aug.diffusion.loading import training_scheduler
from online_aug.seeding import numpy_rng
from tools.embedded_model.training import Settings, training_steps
from tools.embedded_model.trajectories import write_trajectories

RANK = 7
"""Of every linear layer and convolution; the model's folder then stays below 8 MB."""
EARLY = 1.5
"""Exponent above 1: the noisier states of a trajectory are drawn more often than the others."""
SMOOTHING = 0.03
"""Of the loss, in units of the norm of a clean latent."""


class Examples(NamedTuple):
    """States, their time steps, the ends of their trajectories and the embedded captions."""

    states: Float[Tensor, "b 4 h w"]
    times: Int[Tensor, " b"]
    ends: Float[Tensor, "b 4 h w"]
    words: Float[Tensor, "b t d"]


class Trajectories:
    """All trajectories of a folder in memory, in half precision."""

    def __init__(self, folder: Path) -> None:
        """Read the batches that trajectories.py has written."""
        self._batches = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]

    def draw(self, size: int, rng: np.random.Generator) -> Examples:
        """Draw states from anywhere, more of the noisy ones."""
        drawn = [self._one(rng) for _ in range(size)]
        states, times, ends, words = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return Examples(states.float(), times, ends.float(), words.float())

    def _one(self, rng: np.random.Generator) -> Examples:
        batch = self._batches[int(rng.integers(len(self._batches)))]
        row = int(rng.integers(len(batch["ends"])))
        place = int(len(batch["times"]) * rng.random() ** EARLY)
        return Examples(
            batch["states"][place, row],
            batch["times"][place],
            batch["ends"][row],
            batch["words"][row],
        )


class LowRank(nn.Module):
    """Parametrization of a weight: the weight as it was, plus a product of two thin matrices.

    The layer runs once, with the sum as its weight, so training costs no more than that of all
    weights; peft's own layers, which run both matrices beside it, take a quarter longer here.
    """

    def __init__(self, weight: Float[Tensor, "o i *k"], rank: int) -> None:
        """Begin without effect: the second matrix is 0."""
        super().__init__()
        width = weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Float[Tensor, "o i *k"]) -> Float[Tensor, "o i *k"]:
        """Return the sum."""
        return weight + (self.up @ self.down).view_as(weight)

    def matrices(self, weight: Float[Tensor, "o i *k"]) -> dict[str, Tensor]:
        """Return both as peft shapes them: a small layer of the same kind, and one of 1 x 1."""
        rank, ones = len(self.down), [1] * (weight.ndim - 2)
        down = self.down.view(rank, *weight.shape[1:])
        return {"lora_A": down, "lora_B": self.up.view(*self.up.shape, *ones)}


def add_lora(unet: UNet2DConditionModel, rank: int = RANK) -> dict[str, LowRank]:
    """Freeze a U-Net and add low-rank matrices to all its layers, by the names of these."""
    unet.requires_grad_(False)
    layers = {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    added = {name: LowRank(layer.weight, rank) for name, layer in layers.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", added[name])
    return added


def distil(model: Path, settings: Settings, out: Path) -> None:
    """Let a model denoise, train its LoRA on that, and save the averaged matrices."""
    trajectories = Trajectories(write_trajectories(model, settings))
    torch.manual_seed(settings.seed)
    unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    unet.to(settings.device).train()
    added = add_lora(unet)
    if settings.start is not None:
        load_lora(added, settings.start)
    lora = nn.ModuleList(added.values())
    learned = list(lora.parameters())
    kept = training_scheduler(scheduler_settings(model)).alphas_cumprod.to(settings.device)
    optimizer = torch.optim.AdamW(learned, lr=settings.lr, weight_decay=1e-3)
    average = EMAModel(learned, decay=0.998, use_ema_warmup=True, power=0.75)
    parts = {"lora": lora, "optimizer": optimizer, "average": average}
    for step in training_steps(
        "few_steps", parts, optimizer, settings, settings.steps, settings.lr
    ):
        rng = numpy_rng("few steps", settings.seed, step.number)
        examples = trajectories.draw(settings.batch_size, rng)
        states, times, ends, words = (part.to(settings.device) for part in examples)
        output = unet(states, times, words).sample
        alpha = kept[times, None, None, None].sqrt()
        sigma = (1 - kept[times, None, None, None]).sqrt()
        step.finish(_distance(alpha * states - sigma * output, ends))
        average.step(learned)
    average.copy_to(learned)
    save_lora(added, unet, out)


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the pseudo-Huber distance of whole latents (arXiv:2310.14189, section 3.3).

    A squared error would be that of the noisiest states alone, which are the hardest to see
    through.
    """
    squares = (found - wanted).square().mean((1, 2, 3))
    return ((squares + SMOOTHING**2).sqrt() - SMOOTHING).mean()


def save_lora(added: Mapping[str, LowRank], unet: UNet2DConditionModel, folder: Path) -> None:
    """Write matrices in diffusers' format, in half precision."""
    layers = {
        f"unet.{name}.{side}.weight": matrix.detach().half().cpu().contiguous()
        for name, pair in added.items()
        for side, matrix in pair.matrices(unet.get_submodule(name).weight).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(layers, folder / LORA_FILE, metadata={"format": "pt", GUIDANCE: UNGUIDED})


@torch.no_grad()
def load_lora(added: Mapping[str, LowRank], folder: Path) -> None:
    """Take the matrices that `save_lora` wrote."""
    layers = load_file(folder / LORA_FILE)
    for name, pair in added.items():
        pair.down.copy_(layers[f"unet.{name}.lora_A.weight"].flatten(1))
        pair.up.copy_(layers[f"unet.{name}.lora_B.weight"].flatten(1))
