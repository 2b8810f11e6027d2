"""Networks of Stable Diffusion 1.5 and InstructPix2Pix with random weights, from their settings."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from online_aug.diffusion.directory import EMBEDDED
from online_aug.diffusion.loading import Pipeline
from tools.embedded_model import architecture


@dataclass(frozen=True)
class RandomModels:
    """Models on a device, of the published sizes or of the embedded models'."""

    device: torch.device
    is_miniature: bool

    @property
    def dtype(self) -> torch.dtype:
        """Number format that `generation.dtype: auto` takes."""
        return torch.float32 if self.device.type == "cpu" else torch.float16

    def pipeline(self, *, edits: bool) -> Pipeline:
        """Build a model with random weights on the device."""
        kind: Any = (
            StableDiffusionInstructPix2PixPipeline if edits else StableDiffusionImg2ImgPipeline
        )
        tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED["image_to_image"] / "tokenizer")
        with self.device:
            vae, unet, text = self._networks(tokenizer, 4 if edits else 0)
        pipeline: Pipeline = kind(
            vae=vae.to(self.dtype),
            unet=unet.to(self.dtype),
            text_encoder=text.to(self.dtype),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        for network in (pipeline.unet, pipeline.vae):
            network.eval().to(memory_format=torch.channels_last)
        return pipeline

    def _networks(
        self, tokenizer: CLIPTokenizer, condition_channels: int
    ) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel]:
        if self.is_miniature:
            vae, unet = architecture.new_autoencoder(), architecture.new_unet(condition_channels)
            return vae, unet, architecture.new_text_encoder(tokenizer)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        unet = UNet2DConditionModel(
            sample_size=64, in_channels=4 + condition_channels, cross_attention_dim=768
        )
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
        )
        return vae, unet, CLIPTextModel(config)

    def tiny_autoencoder(self) -> AutoencoderTiny:
        """Build a tiny autoencoder with random weights, of the size of `madebyollin/taesd`."""
        levels = 3 if self.is_miniature else 4
        blocks = (1, *(3,) * (levels - 1))
        with self.device:
            vae = AutoencoderTiny(
                encoder_block_out_channels=(64,) * levels,
                decoder_block_out_channels=(64,) * levels,
                num_encoder_blocks=blocks,
                num_decoder_blocks=blocks[::-1],
            )
        return vae.to(self.dtype).eval().to(memory_format=torch.channels_last)
