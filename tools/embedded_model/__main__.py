"""Train an embedded diffusion model from scratch: autoencoder, then denoiser and text encoder.

Run it in the repository: `python -m tools.embedded_model OUT`. Everything is saved in the work
folder and found again, so the command may be stopped and started. With `--few-steps MODEL` it
trains a LoRA instead, with which a finished text-to-image model does with four steps.
"""

import argparse
from pathlib import Path

import torch

from tools.embedded_model.corpus import TASKS, Task
from tools.embedded_model.distillation import distil
from tools.embedded_model.training import Settings, train_autoencoder, train_denoiser


def main() -> None:
    """Draw the corpus, train the parts and write the model."""
    task, settings, out, threads, teacher = _parse()
    torch.set_num_threads(threads)
    settings.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    if teacher is not None:
        distil(teacher, settings, out)
        return
    corpus = task.build_corpus(settings.digits, settings.birds, settings.seed)
    vae = train_autoencoder(corpus, settings)
    train_denoiser(task, corpus, vae, settings, out)


def _parse() -> tuple[Task, Settings, Path, int, Path | None]:
    parser = argparse.ArgumentParser("python -m tools.embedded_model", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the finished model")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="text_to_image",
        help="images from captions, or edits of an image by DiffuseMix's instructions",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/embedded_model"), help="folder of checkpoints"
    )
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the denoiser")
    parser.add_argument(
        "--vae-steps",
        type=int,
        help="steps of the autoencoder; default: 1500, or 0 with --autoencoder",
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        help="start from the autoencoder of this model; with 0 steps it stays as it is",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="start from the denoiser and text encoder of this model, or from this folder's LoRA",
    )
    parser.add_argument(
        "--few-steps",
        type=Path,
        metavar="MODEL",
        help="distil this text-to-image model; OUT is then the folder of the LoRA",
    )
    parser.add_argument(
        "--trajectories",
        type=int,
        default=5_000,
        help="with --few-steps: images that the model denoises to be learned from",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--digits", type=int, default=10_000, help="digits in the corpus")
    parser.add_argument("--birds", type=int, default=40_000, help="birds in the corpus")
    parser.add_argument("--seed", type=int, default=0, help="seed of corpus and training")
    parser.add_argument("--device", default="cpu", help="device to train on")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = vars(parser.parse_args())
    task, out, threads = (options.pop(name) for name in ("task", "out", "threads"))
    teacher: Path | None = options.pop("few_steps")
    if options["vae_steps"] is None:
        options["vae_steps"] = 0 if options["autoencoder"] else 1_500
    return TASKS[task], Settings(**options), out, threads, teacher


if __name__ == "__main__":
    main()
