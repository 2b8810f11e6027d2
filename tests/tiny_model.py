"""Model directories with random weights that load and run like trained ones."""

import json
import shutil

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from tools.embedded_model import architecture

CORPUS = ["a photo of a thin digit leaning left", "a photo of a bird in the snow at noon"]


def write_tiny_model(folder, condition_channels=0):
    """Write all parts of the embedded architecture into a folder and return it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = architecture.new_tokenizer(CORPUS)
        architecture.save_pipeline(
            folder,
            vae=architecture.new_autoencoder(),
            unet=architecture.new_unet(condition_channels),
            text_encoder=architecture.new_text_encoder(tokenizer),
            tokenizer=tokenizer,
        )
    return folder


def copy_with(model, folder, part="", **settings):
    """Copy a model directory, change settings of one part, and return the copy."""
    shutil.copytree(model, folder)
    if not settings:
        return folder
    (path,) = (folder / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def write_tiny_vae(folder, levels=3, **changes):
    """Write an `AutoencoderTiny` directory; 3 levels fit the tiny model's latents."""
    settings = {
        "encoder_block_out_channels": (8,) * levels,
        "decoder_block_out_channels": (8,) * levels,
        "num_encoder_blocks": (1,) * levels,
        "num_decoder_blocks": (1,) * levels,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderTiny(**settings | changes).save_pretrained(folder)
    return folder


def write_tiny_clip(folder):
    """Write a CLIP directory that looks at 32 px."""
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = architecture.new_tokenizer(CORPUS)
        text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        config = CLIPConfig(
            text_config=tower | text,
            vision_config=tower | {"image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
        CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def write_miniature(folder, version=1):
    """Write Stable Diffusion 1.x or 2.x with its blocks and noise schedule, but few channels.

    Latents of 16 x 16, so that the middle block has more than one place to attend to.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = architecture.new_tokenizer(CORPUS)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8, 8, 16),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                layers_per_block=1,
                norm_num_groups=4,
                latent_channels=4,
                sample_size=64,
            ),
            unet=UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(16, 16, 32, 32),
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=architecture.TEXT_WIDTH,
                attention_head_dim=8 if version == 1 else (2, 2, 4, 4),
                use_linear_projection=version == 2,
            ),
            text_encoder=architecture.new_text_encoder(tokenizer),
            tokenizer=tokenizer,
            scheduler=PNDMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                skip_prk_steps=True,
                steps_offset=1,
                prediction_type="epsilon" if version == 1 else "v_prediction",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
