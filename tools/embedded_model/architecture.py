"""Build the parts of the embedded models: a real, small Stable Diffusion for 64 px images.

The classes are those of Stable Diffusion 1.5, with fewer channels: 3.6 M parameters together. The
parts are saved in diffusers' format, so everything else treats them like any other checkpoint.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOLUTION_PX = 64
LATENT_PX = 16
LATENT_CHANNELS = 4
MAX_TOKENS = 48
TEXT_WIDTH = 128
VOCABULARY = 640
START, END = "<|startoftext|>", "<|endoftext|>"


def new_autoencoder() -> AutoencoderKL:
    """Build an autoencoder with a factor of 4: 64 px to 4 x 16 x 16."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=RESOLUTION_PX,
        scaling_factor=1.0,
    )


def new_unet(condition_channels: int = 0) -> UNet2DConditionModel:
    """Build a denoiser of 16 x 16 latents, with cross-attention at 8 x 8 and 4 x 4.

    Args:
        condition_channels: Number of channels for the latents of a source image, which come
            beside the noisy ones; 0 for a text-to-image model.
    """
    return UNet2DConditionModel(
        in_channels=LATENT_CHANNELS + condition_channels,
        sample_size=LATENT_PX,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 3),  # diffusers reads this as the number of heads: 32 wide each
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a two-layer CLIP text encoder for the tokenizer's vocabulary."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    positions = model.get_parameter("embeddings.position_embedding.weight")
    positions.data.copy_(0.05 * _sinusoids(*positions.shape))
    return model


def _sinusoids(length: int, width: int) -> Tensor:
    """Return position embeddings as in arXiv:1706.03762, section 3.5.

    From random positions the encoder would have to learn place by place which colour stands
    before which part; here the word before is always the same rotation away.
    """
    angles = torch.arange(length)[:, None] / 100 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def new_tokenizer(corpus: Iterable[str]) -> CLIPTokenizer:
    """Learn a CLIP tokenizer from `corpus`; it splits any other text into pieces."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=[*alphabet, *(letter + "</w>" for letter in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]["merges"]
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned
    ]
    words = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *map("".join, merges),
        START,
        END,
    ]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges), ""])
        )
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def new_scheduler() -> DDIMScheduler:
    """Build Stable Diffusion's noise schedule with velocity prediction, as in its 2.x models.

    Rescaled to zero terminal SNR (arXiv:2305.08891): small latents are so smooth that their mean
    shows through the original schedule's last step, and samples from pure noise come out grey.
    `clip_sample` is off: the default would clip latents of unit variance and ruin sampling.
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def save_pipeline(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write the four parts as a half-precision directory in diffusers' format.

    If the U-Net also takes the latents of a source image, the model is an InstructPix2Pix.
    """
    is_plain = unet.config["in_channels"] == LATENT_CHANNELS
    kind = StableDiffusionPipeline if is_plain else StableDiffusionInstructPix2PixPipeline
    pipeline = kind(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):
        settings = json.loads(config.read_text())
        settings.pop("_name_or_path", None)  # the path on this machine
        if config.parent.name == "text_encoder":
            # transformers reads the dtype here, diffusers uses single precision unless told
            # otherwise; they must agree for the pipeline to run as `from_pretrained` loads it.
            settings["dtype"] = "float32"
        config.write_text(json.dumps(settings, indent=2) + "\n")
