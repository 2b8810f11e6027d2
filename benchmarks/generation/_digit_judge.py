"""An independent judge of generated digits: a small CNN trained on all training digits.

Only benchmarks use it; nothing in the package sees it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from online_aug.data.embedded import digits_arrays
from online_aug.data.settings import DataConfig
from online_aug.data.transforms import train_transform
from online_aug.seeding import numpy_rng, torch_rng

SIDE_PX = 32
STEPS, BATCH_SIZE = 600, 64


def train_judge(seed: int = 0) -> nn.Module:
    """Train a judge and return it in evaluation mode; it takes half a minute on one core."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = nn.Sequential(
            *(layer for pair in ((1, 24), (24, 48), (48, 96)) for layer in _block(*pair)),
            nn.Flatten(),
            nn.Linear(96 * 16, 10),
        )
    images, labels = _tensors("train")
    move = train_transform(DataConfig(image_size=SIDE_PX))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for step in range(STEPS):
        rng = numpy_rng("judge", seed, step)
        chosen = rng.integers(len(images), size=BATCH_SIZE)
        seeds = rng.integers(2**62, size=BATCH_SIZE)
        batch = torch.stack(
            [move(images[i], torch_rng(int(s))) for i, s in zip(chosen, seeds, strict=True)]
        )
        loss = F.cross_entropy(judge(_prepared(batch)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def classes_seen(judge: nn.Module, images: Tensor) -> Tensor:
    """Return the digit the judge sees in each image, uint8 `n 3 h w`."""
    small = F.interpolate(images.float(), size=(SIDE_PX, SIDE_PX), mode="area")
    return torch.cat([judge(_prepared(part)).argmax(1) for part in small.split(256)])


def accuracy(judge: nn.Module, split: str) -> float:
    """Return the share of real digits of a split that the judge gets right."""
    images, labels = _tensors(split)
    return float((classes_seen(judge, images) == labels).float().mean())


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def _prepared(images: Tensor) -> Tensor:
    return images.float().mean(1, keepdim=True) / 127.5 - 1


def _tensors(split: str) -> tuple[Tensor, Tensor]:
    images, labels = digits_arrays(split)
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2), torch.from_numpy(
        labels
    )
