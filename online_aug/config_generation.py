"""The part of the configuration that says how images are made."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from online_aug.config_types import Count, Exponent, NotNegative, Pixels, Section, Seed

_LCM_STEPS = 50
"""Steps of the solver that consistency models are distilled from (arXiv:2310.04378)."""


class GenerationConfig(Section):
    """How images are made."""

    model: str = "embedded"
    """`embedded`, a directory in diffusers' format, or a hub name: Stable Diffusion 1.x or 2.x, or
    InstructPix2Pix for DiffuseMix."""
    revision: str | None = None
    """Revision of a hub name."""
    vae: str | None = None
    """A tiny autoencoder that takes the place of the model's own, but for learning: a directory in
    diffusers' format or a hub name, such as `madebyollin/taesd`."""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 25
    """Steps of the whole trajectory; `int(steps * strength)` are run."""
    guidance_scale: Annotated[float, Field(ge=1, le=50), Exponent] = 7.5
    """Weight of the prompt in classifier-free guidance; 1 turns guidance off."""
    image_guidance_scale: Annotated[float, Field(ge=1, le=50), Exponent] = 1.5
    """DiffuseMix: weight of the source image in InstructPix2Pix; 1 is no more than trained."""
    scheduler: Literal["dpmsolver++", "ddim", "euler", "euler_ancestral", "lcm"] = "dpmsolver++"
    """Solver of the denoising steps."""
    resolution: Annotated[Pixels, Field(multiple_of=8)] = 512
    """Side of the generated square, px, a multiple of 8."""
    slots: Literal["auto"] | Count = "auto"
    """Images denoised together; `auto` is 8 on a CPU and what fits into half of the free memory, up
    to 16, on a GPU; more than fit are refused. Where memory runs out later, half as many go on."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """Attention kernels; `auto` takes PyTorch's own on a CPU and measures on a GPU."""
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"
    """How the network is called: `graph` records a call and replays it (a CUDA graph on a GPU),
    `compile` is torch.compile, which takes minutes at the start and needs a C++ compiler on a CPU;
    `auto` records on a CPU only."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the generator; `auto` is float32 on a CPU, float16 on a GPU."""
    latents_gib: NotNegative = 8.0
    """What latents of sources for which 1 GiB of memory is too little may take of the disk of the
    cache, GiB, for each generation process until its end; 0 encodes them again."""
    max_ahead: Count = 256
    """Generated images not yet served at which the generator pauses."""
    variants_per_image: Count = 5
    """Images made from each source (Diff-Mix's multiplier)."""
    seed: Seed = 0
    """Seed of the plan and the noise; part of the request: another seed makes other images."""

    @model_validator(mode="after")
    def _steps_exist(self) -> "GenerationConfig":
        if self.scheduler == "lcm" and self.num_inference_steps > _LCM_STEPS:
            raise ValueError(
                f"generation.num_inference_steps must be at most {_LCM_STEPS} with "
                f"generation.scheduler lcm, got {self.num_inference_steps}"
            )
        return self
