"""Train the embedded diffusion model from scratch: autoencoder, then denoiser and text encoder.

Everything is saved under the work folder and found again: the command may be stopped and started.
"""

import argparse
from pathlib import Path

import torch

from online_aug.pretraining.corpus import build_corpus
from online_aug.pretraining.training import Settings, train_autoencoder, train_denoiser


def main() -> None:
    """Corpus, autoencoder, denoiser, model."""
    settings, out, threads = _parse()
    torch.set_num_threads(threads)
    settings.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    corpus = build_corpus(settings.digits, settings.birds, settings.seed)
    vae = train_autoencoder(corpus, settings)
    train_denoiser(corpus, vae, settings, out)


def _parse() -> tuple[Settings, Path, int]:
    parser = argparse.ArgumentParser("python -m online_aug.pretraining", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("runs/pretraining"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the denoiser")
    parser.add_argument("--vae-steps", type=int, default=1_500, help="steps of the autoencoder")
    parser.add_argument(
        "--autoencoder",
        type=Path,
        help="take the autoencoder of this model instead of training one",
    )
    parser.add_argument("--start", type=Path, help="train this model's denoiser and words on")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--digits", type=int, default=10_000, help="digits in the corpus")
    parser.add_argument("--birds", type=int, default=40_000, help="birds in the corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = vars(parser.parse_args())
    out, threads = options.pop("out"), options.pop("threads")
    return Settings(**options), out, threads


if __name__ == "__main__":
    main()
