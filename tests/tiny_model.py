"""A random diffusion model that loads and runs like a trained one, in a fraction of a second."""

import json
import shutil

import torch

from online_aug.generation import tiny

CORPUS = ["a photo of a thin digit leaning left", "a photo of a bird in the snow at noon"]


def write_tiny_model(folder, condition_channels=0):
    """The folder, with all parts of the embedded architecture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = tiny.new_tokenizer(CORPUS)
        tiny.save_pipeline(
            folder,
            vae=tiny.new_autoencoder(),
            unet=tiny.new_unet(condition_channels),
            text_encoder=tiny.new_text_encoder(tokenizer),
            tokenizer=tokenizer,
        )
    return folder


def copy_with(model, folder, part="", **settings):
    """A copy of a model directory, some settings of one part changed."""
    shutil.copytree(model, folder)
    if not settings:
        return folder
    (path,) = (folder / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder
