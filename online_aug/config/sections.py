"""The sections of a configuration that belong to no other package, each a frozen model."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from online_aug.settings import (
    AsTuple,
    Count,
    Devices,
    Exponent,
    Fraction,
    NotNegative,
    Pixels,
    Positive,
    Section,
    Seed,
    Text,
)


class RunConfig(Section):
    """The run: its name, place, seed, length and checkpoints."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run directory; null takes the name of the YAML file and the seed."""
    dir: Path = Path("runs")
    """Folder that holds the run directories."""
    seed: Seed = 0
    """Seed of classifier weights, order, mixing and transforms; never of the generated images."""
    epochs: Count = 20
    """Passes over the training set."""
    resume: bool = True
    """Resume from the newest checkpoint of the run directory, if there is one."""
    checkpoint_epochs: Count = 5
    """Epochs between two checkpoints; the last epoch and an interrupt always write one."""
    checkpoint_steps: Count | None = None
    """Optimizer steps between two further checkpoints, so that a crash loses less."""
    trackers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], AsTuple
    ] = ("tensorboard",)
    """Trackers that get the figures of every epoch, gallery and configuration; `[]` is none."""
    replay: Path | None = None
    """Directory of an earlier run with the same settings, whose images are served again in the same
    sequence, from its ledger and the cache; nothing is generated."""


class CacheConfig(Section):
    """The cache of generated images."""

    path: Path = Path("runs/cache")
    """Directory of the LMDB cache, shared by runs and seeds."""
    max_gib: Positive | None = None
    """Largest size of the images on disk, GiB; null is no limit."""
    eviction: Literal["served", "oldest"] | None = "served"
    """Images to remove when `max_gib` is reached: `served` removes those first that were served
    `mixing.max_times_sampled` times (once if that is null), then the oldest; `oldest` the oldest;
    null keeps all images and stops generation."""
    durability: Literal["power", "process"] = "power"
    """A stored image survives loss of `power`, or only the death of any `process` (faster)."""
    codec: Literal["auto", "webp_lossless", "png", "raw", "webp_lossy", "jpeg"] = "auto"
    """Format of stored images. `auto` is `jpeg` if most training images are JPEG files, so that
    real and generated images have the same compression artefacts; otherwise it is `webp_lossless`.
    The first three of the others are lossless, the last two leave artefacts."""


class DevicesConfig(Section):
    """The devices that train and those that generate."""

    train: Literal["auto"] | Devices = "auto"
    """`auto`, or a list such as `[cuda:0, cuda:1]` or `[cpu, cpu]` with a rank on each."""
    generate: Literal["auto", "none"] | Devices = "auto"
    """`auto`, `none` (serve the cache only), a device such as `cuda:1` or `cpu`, or a list of
    devices with a process on each."""
    share: Annotated[float, Field(ge=0, lt=1), Exponent] = 0.5
    """Share of a GPU's speed that training keeps if a generation process is on the same GPU and
    pauses between its steps; 0 never pauses."""


class MixingConfig(Section):
    """How real and synthetic samples share a batch."""

    policy: Literal["global", "local", "concat"] = "global"
    """A synthetic sample replaces a real one and comes from the whole pool (`global`, Diff-Mix) or
    from the variants of that image (`local`, DA-Fusion); or all real and all synthetic images are
    seen, each once an epoch in an order by seed (`concat`, DiffuseMix)."""
    synthetic_probability: Fraction = 0.3
    """Probability that a slot of the batch gets a synthetic sample, [0, 1]; with `concat` the share
    of synthetic samples in the longer epoch, V / (V + 1) for all V variants of an image; with less
    some wait for a later epoch."""
    final_probability: Fraction | None = None
    """The same probability in the last epoch; null keeps that of the first."""
    probability_schedule: Literal["linear", "cosine"] = "linear"
    """Change from the first epoch's probability to the last one's."""
    class_probability: dict[str, Fraction] = Field(default_factory=dict)
    """Probabilities by class name, for all epochs; the class is that of the real image which a
    synthetic sample would replace."""
    class_balance: NotNegative = 0.0
    """Policy `global`: draw the class of a synthetic sample in proportion to 1 / (n + 1)^x of its n
    training images, then an image towards that class, imported or not; 0 draws all images alike, 1
    is Diff-Mix's for long tails."""
    starvation: Literal["substitute", "wait"] = "substitute"
    """If no synthetic sample is ready: serve the real one and count it, or wait for one."""
    head_start: Annotated[int, Field(ge=0)] = 0
    """Generated images that must be there before training starts, or all of a smaller plan: more
    synthetic samples in the first epochs, and the same image less often; 0 starts at once."""
    max_times_sampled: Count | None = None
    """Times that one generated image may be served in a run; null is no limit."""
    samples_per_insert: Positive | None = None
    """Times that a generated image is served on average, as with Reverb's rate limiter: with too
    few images real ones are served, with too many the generator pauses (instead of by
    `generation.max_ahead`); null only reports the number."""
    min_inserts: Count = 1
    """Images that must exist before the first is served, with `samples_per_insert`."""
    sampling_tolerance: Positive | None = None
    """Served images by which the average may be missed either way; null is ten times
    `samples_per_insert`, and at least 10."""
    imported: Literal["beside", "only"] | None = None
    """Serve images that `online-aug cache import` brought and whose classes are known: `beside`
    those of the plan, or `only` them, without a generator; null serves none."""

    @property
    def is_synthetic(self) -> bool:
        """Whether synthetic images are served at all."""
        others = (self.final_probability or 0.0, *self.class_probability.values())
        return max(self.synthetic_probability, *others) > 0


class FinetuneConfig(Section):
    """Fine-tuning of the generator on the training images (Diff-Mix: tokens and LoRA)."""

    enabled: bool = True
    """Fine-tune before training if no result is found; `diffusemix`, `real_gen`, `real_guidance`
    and `real_mix` take their model as it is."""
    path: Path = Path("runs/finetuned")
    """Folder of results, with a sub-folder for each fingerprint; or a file or folder of adapters
    made elsewhere: ours, diffusers', Diff-Mix's, DA-Fusion's tokens (`.pt`)."""
    mode: Literal["joint", "textual_inversion", "staged", "lora"] = "joint"
    """Learn class tokens and LoRA at once (`joint`, Diff-Mix), tokens only (`textual_inversion`,
    DA-Fusion), tokens and then LoRA (`staged`), or LoRA alone with the class names in the prompts
    (`lora`)."""
    per_class: bool = False
    """Learn the tokens of each class in a run of its own (DA-Fusion) instead of all in one
    (Diff-Mix); only with `textual_inversion` and `staged`, since all classes share one LoRA."""
    num_vectors: Count = 1
    """Embeddings that a class token stands for, as in diffusers' textual inversion; more can hold
    more of a class (DA-Fusion's second version has 4)."""
    initializer: Text | None = None
    """Words at whose mean embedding a class token starts, `{class}` for the name of its class
    (DA-Fusion); null is `data.metaclass`."""
    steps: Count = 2000
    """Optimizer steps: of the LoRA with `staged`, of each class with `per_class`."""
    token_steps: Count | None = None
    """Optimizer steps of the tokens in `staged`; null takes `steps`."""
    batch_size: Count = 8
    """Images in a step, over all devices together; every GPU of the run computes its part."""
    class_balance: Fraction = 0.0
    """Draw an image of a class of n images in proportion to 1 / n^x: 0 draws all images alike, 1
    all classes alike (Diff-Mix's sampler for long tails)."""
    resolution: Annotated[Pixels, Field(multiple_of=8)] | None = None
    """Side of the squares that are learned from, px; null is `generation.resolution`."""
    crop: Literal["squash", "random"] = "squash"
    """Make a square of an image by changing its aspect, as when images are made; or resize its
    shortest side and cut anywhere (Diff-Mix)."""
    latents: Literal["mean", "sample"] = "mean"
    """Learn from the mean of the encoder's Gaussian, the same in every step, or from a sample of it
    (Diff-Mix, DA-Fusion)."""
    lr: Positive = 5e-5
    """Learning rate of the LoRA weights."""
    token_lr: Positive = 5e-4
    """Learning rate of the class tokens."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Keep both learning rates constant (Diff-Mix), or let them fall to 0."""
    rank: Count = 10
    """Rank of the LoRA matrices."""
    min_snr_gamma: Positive | None = None
    """Weigh noise levels by Min-SNR (arXiv:2303.09556, which takes 5); null weighs all alike, as
    Diff-Mix and DA-Fusion do."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the frozen model; learned weights stay float32. `float16` scales the loss
    and needs a GPU."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, the same result."""
    seed: Seed = 0
    """Seed of the order, noise and initial LoRA weights."""
    checkpoint_steps: Count = 200
    """Steps between two checkpoints, from which an interrupted fine-tuning resumes."""
    validation_steps: Count | None = None
    """Steps between two contact sheets of images by the model so far, in `validation/` beside the
    result; null draws none."""


PLACE = "{class}"
"""The place of a class in a prompt."""
PROMPT = f"a photo of a {PLACE}"


class GenerationConfig(Section):
    """How images are made."""

    engine: Literal["local", "openai"] = "local"
    """Make images here (`local`), or ask a running image server with OpenAI's images API for them
    (`openai`, section `image_server`), which edits images for DiffuseMix."""
    model: str = "embedded"
    """`embedded`, a directory in diffusers' format, or a hub name: Stable Diffusion 1.x or 2.x, or
    InstructPix2Pix for DiffuseMix. With `engine: openai` the server's name of a model; `embedded`
    is the only one it has."""
    revision: str | None = None
    """Revision of a hub name. With `engine: openai` any word of yours for weights that the server
    does not tell apart."""
    unet: Path | None = None
    """File of weights in the place of those of the model's own U-Net, in fine-tuning too: tensors
    by diffusers' names (`.safetensors`, `.bin`, `.pt`), such as a U-Net from which the classes were
    erased (DA-Fusion)."""
    vae: str | None = None
    """Tiny autoencoder used instead of the model's own, except for fine-tuning: a directory in
    diffusers' format or a hub name, such as `madebyollin/taesd`."""
    prompt: Text = PROMPT
    """Prompt of all methods but DiffuseMix, which has `method.template`; `{class}` is the token or
    the name of the class with `data.metaclass` behind it. One without it, such as `a photo`, asks
    for no class, which only a model that is taken as it is can be."""
    few_step_adapter: str | None = None
    """LoRA with which few steps will do (LCM-LoRA, arXiv:2311.05556): a file, a folder, or a hub
    name such as `latent-consistency/lcm-lora-sdv1-5`; needs `scheduler: lcm`."""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps of the whole trajectory; `int(steps * strength)` are run, with `lcm` rounded up. Null
    is 25, or 4 for a model that was distilled to few steps (LCM, turbo)."""
    guidance_scale: Annotated[float, Field(ge=1, le=50), Exponent] = 7.5
    """Weight of the prompt in classifier-free guidance; 1 turns guidance off."""
    image_guidance_scale: Annotated[float, Field(ge=1, le=50), Exponent] = 1.5
    """DiffuseMix: weight of the source image in InstructPix2Pix; 1 turns this guidance off."""
    scheduler: Literal["dpmsolver++", "ddim", "euler", "euler_ancestral", "pndm", "lcm"] = (
        "dpmsolver++"
    )
    """Solver of the denoising steps."""
    resolution: Annotated[Pixels, Field(multiple_of=8)] | None = None
    """Side of the generated square, px, a multiple of 8; null is the side that the model was
    trained for, such as 512."""
    slots: Literal["auto"] | Count = "auto"
    """Images denoised together; `auto` is 8 on a CPU, and on a GPU up to 16 that fit into half of
    the free memory. More than fit are refused; if memory runs out later, the number is halved."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """Attention kernels; `auto` takes PyTorch's on a CPU and the faster ones on a GPU."""
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"
    """Execution of the network: `graph` records a call and replays it (a CUDA graph on a GPU);
    `compile` is torch.compile, which takes minutes at the start and needs a C++ compiler on a CPU;
    `auto` records on a CPU only."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the generator; `auto` is float32 on a CPU, float16 on a GPU."""
    max_ahead: Count = 256
    """Generated images not yet served at which the generator pauses."""
    variants_per_image: Count = 5
    """Images made from each source (Diff-Mix's multiplier)."""
    seed: Seed = 0
    """Seed of the plan and the noise; part of the request: another seed makes other images."""


class ScheduleConfig(Section):
    """The order in which images are made."""

    priority: Literal["uniform", "long_tail", "hard"] = "uniform"
    """`uniform`: the order of the plan; `long_tail`: target classes in proportion to 1 / (n + 1) of
    their n training images; `hard`: in proportion to the classifier's running loss on them."""
    image_weights: Path | None = None
    """With `uniform`: JSON file that maps training images (files as the data set lists them, or
    digests) to weights above 0; images are varied in proportion to them, others have weight 1."""
    refresh_steps: Count = 100
    """`hard`: optimizer steps between two updates of the losses."""
    stripe: Annotated[int, Field(ge=0)] = 0
    """Part of the plan with which this machine begins, from 0, if several make one plan."""
    stripes: Count = 1
    """Machines that make one plan, each a part: source and variant decide which one makes an
    image."""
    helps: bool = True
    """Continue with the rest after the own part; false ends there, for caches to be merged."""
