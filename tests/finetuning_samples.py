"""Six noise images of three classes, and fine-tuning on them in a second."""

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file

from online_aug.config.sections import FinetuneConfig, GenerationConfig
from online_aug.diffusion.adapters import LORA_FILE, TOKENS_FILE, class_concepts, named_concepts
from online_aug.diffusion.loading import load_img2img
from online_aug.distributed.world import single
from online_aug.finetuning.loop import BEGINNING, FinetuneTask, finetune
from online_aug.finetuning.objective import Examples

NAMES = ["zero", "one", "two"]
CONCEPTS = class_concepts(NAMES, "digit")
NAMED = named_concepts(NAMES, "digit")
DRAWING = GenerationConfig(resolution=64, num_inference_steps=2)
CONFIG = FinetuneConfig(steps=3, batch_size=2, lr=1e-2, token_lr=1e-2, rank=2)


def config_with(**settings):
    return FinetuneConfig(**CONFIG.model_dump() | settings)


def examples(hflip=0.5, labels=(0, 1, 2, 0, 1, 2)):
    images = torch.randint(
        256, (len(labels), 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return Examples(load=lambda index: images[index], labels=np.array(labels), hflip=hflip)


def run(model, folder, config=CONFIG, report=lambda *_: None, checkpoint=BEGINNING, **settings):
    """Fine-tune a fresh pipeline, write the result into a folder, and return the pipeline."""
    pipeline = load_img2img(model, "float32")
    folder.mkdir(exist_ok=True)
    concepts = NAMED if config.mode == "lora" else CONCEPTS
    task = FinetuneTask(
        examples=examples(**settings), concepts=concepts, config=config, generation=DRAWING
    )
    finetune(pipeline, task, folder, report, checkpoint, single("cpu"))
    return pipeline


def tokens_of(folder):
    return load_file(folder / TOKENS_FILE)["clip_l"]


def lora_of(folder):
    return load_file(folder / LORA_FILE)


def stock_pipeline(model, folder):
    """Load a result into stock diffusers with one call for each file."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if (folder / LORA_FILE).exists():
        pipeline.load_lora_weights(folder)
    if (folder / TOKENS_FILE).exists():
        tokens = [concept.token for concept in CONCEPTS]
        pipeline.load_textual_inversion(tokens_of(folder), token=tokens)
    return pipeline
