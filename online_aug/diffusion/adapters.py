"""Adapters as files: which there are below `finetune.path`, and what they hold.

Our own results hold the first two of these, beside `concepts.json`. The others are what people have
from elsewhere: diffusers' textual inversion, Diff-Mix's tokens, DA-Fusion's merged tokens.

What fine-tuning adds to a model: class tokens and LoRA, in diffusers' own file formats.

A folder holds `pytorch_lora_weights.safetensors` (diffusers' LoRA format) where LoRA was learned,
`tokens_emb.safetensors` (one tensor `clip_l` of n x d, the format of diffusers' pivotal tuning)
where tokens were, and `concepts.json` (class, token and prompt of each row). Stock diffusers loads
the first two, each in one call.

How classes are called in prompts: a token of their own, or their name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from online_aug.diffusion.directory import first_not_finite
from online_aug.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"
TOKENS_FILE = "tokens_emb.safetensors"
_LORA_FILES = (LORA_FILE, "pytorch_lora_weights.bin")
_TOKEN_FILES = (
    TOKENS_FILE,
    "*_emb.safetensors",  # diffusers' pivotal tuning
    "learned_embeds-steps-last.bin",  # Diff-Mix
    "learned_embeds.safetensors",  # diffusers' textual inversion
    "learned_embeds.bin",
    "learned_embeds-steps-*",
    "*.pt",  # DA-Fusion, merged
)
_TOKENS_BY_CLASS = ("*/learned_embeds.safetensors", "*/learned_embeds.bin")  # DA-Fusion, unmerged
_TENSOR_FILES = {".safetensors", ".bin", ".pt"}


@dataclass(frozen=True)
class Adapters:
    """What is added to a base model."""

    tokens: Mapping[str, Tensor]
    """Embedding of each new token: one row, or a matrix of several that stand in a row."""
    lora: Path | Mapping[str, Tensor] | None
    """A file in diffusers' format, or its tensors by diffusers' names."""


@dataclass(frozen=True)
class AdapterFiles:
    """The files of adapters that were made elsewhere."""

    tokens: tuple[Path, ...]
    """One file for all classes, or one for each in a folder of its name."""
    lora: Path | None

    def digest(self, class_names: Sequence[str]) -> str:
        """BLAKE2b of the files and of the classes their tokens are given to, hexadecimal."""
        digest = hashlib.blake2b(json.dumps(list(class_names)).encode(), digest_size=16)
        for path in (*self.tokens, *filter(None, [self.lora])):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()


def read_result(folder: Path) -> Adapters:
    """The adapters of one of our own results."""
    tokens: dict[str, Tensor] = {}
    if (folder / TOKENS_FILE).is_file():
        concepts = json.loads((folder / CONCEPTS_FILE).read_text())
        rows = load_file(folder / TOKENS_FILE)["clip_l"]
        tokens = {concept["token"]: row for concept, row in zip(concepts, rows, strict=True)}
    return Adapters(tokens, (folder / LORA_FILE) if (folder / LORA_FILE).is_file() else None)


def find_adapters(path: Path) -> AdapterFiles | None:
    """What `finetune.path` itself holds; None where it is, or will be, a folder of results.

    Raises:
        UserError: If it is a file that does not exist or holds no tensors, or a folder with tensors
            of another kind.
    """
    if path.suffix in _TENSOR_FILES or path.is_file():
        return _of_file(path)
    tokens, lora = _newest(path, _TOKEN_FILES), _newest(path, _LORA_FILES)
    by_class = () if tokens else _of_classes(path)
    if tokens or lora or by_class:
        return AdapterFiles((tokens,) if tokens else by_class, lora)
    strangers = [file.name for file in sorted(path.glob("*")) if file.suffix in _TENSOR_FILES]
    if strangers:
        raise UserError(
            f"finetune.path must be a folder of results, or hold {LORA_FILE}, {TOKENS_FILE}, "
            f"learned_embeds* or *.pt, got {path} with {strangers[0]}"
        )
    return None


def _of_file(path: Path) -> AdapterFiles:
    if not path.is_file() or path.suffix not in _TENSOR_FILES:
        raise UserError(
            "finetune.path must be a folder of results, or adapters made elsewhere "
            f"({', '.join(sorted(_TENSOR_FILES))}), got {path}, "
            f"which is {'another file' if path.is_file() else 'missing'}"
        )
    if path.name.startswith("pytorch_lora_weights"):
        return AdapterFiles((), path)
    return AdapterFiles((path,), None)


def _newest(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The first pattern's file; of several steps the last."""
    for pattern in patterns:
        found = [path for path in folder.glob(pattern) if path.suffix in _TENSOR_FILES]
        if len(found) > 1 and "steps" not in pattern:
            names = ", ".join(sorted(path.name for path in found))
            raise UserError(f"finetune.path must name one file, got {folder} with {names}")
        if found:
            return max(found, key=lambda path: (len(path.stem), path.name))
    return None


def _of_classes(folder: Path) -> tuple[Path, ...]:
    found = {path.parent: path for pattern in _TOKENS_BY_CLASS for path in folder.glob(pattern)}
    return tuple(found[place] for place in sorted(found))


CONCEPTS_FILE = "concepts.json"
"""Written last into a fine-tuning result; where it is, the result is whole."""


@dataclass(frozen=True)
class Concept:
    """How one class is called in prompts."""

    name: str
    token: str | None
    """None where the prompt holds the name."""
    prompt: str


def class_concepts(class_names: Sequence[str], metaclass: str) -> tuple[Concept, ...]:
    """Tokens `<class_0>`, `<class_1>`, ... with Diff-Mix's prompt template.

    The brackets keep one token from being the prefix of another, which diffusers would take for a
    token of several vectors.
    """
    tokens = [f"<class_{number}>" for number in range(len(class_names))]
    return tuple(
        Concept(name, token, _prompt(token, metaclass))
        for name, token in zip(class_names, tokens, strict=True)
    )


def named_concepts(class_names: Sequence[str], metaclass: str) -> tuple[Concept, ...]:
    """The class names themselves, for a model that has learned no tokens."""
    return tuple(
        Concept(name, None, _prompt(name.replace("_", " "), metaclass)) for name in class_names
    )


def is_finetuned(folder: Path) -> bool:
    """A whole fine-tuning result is here."""
    return (folder / CONCEPTS_FILE).is_file()


def _prompt(called: str, metaclass: str) -> str:
    return f"a photo of a {called} {metaclass}".strip()


def save_adapters(
    folder: Path,
    pipeline: StableDiffusionImg2ImgPipeline,
    concepts: Sequence[Concept],
    tokens: Float[Tensor, "n d"] | None,
    *,
    has_lora: bool,
) -> None:
    """Write what was learned into an existing folder, the concepts last.

    Args:
        folder: Where.
        pipeline: Whose U-Net holds the LoRA.
        concepts: Class, token and prompt by label.
        tokens: Embedding of each concept's token; None where the prompts hold class names.
        has_lora: LoRA was learned.
    """
    if has_lora:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
        pipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
    if tokens is not None:
        save_file({"clip_l": tokens.float().cpu().contiguous()}, folder / TOKENS_FILE)
    (folder / CONCEPTS_FILE).write_text(json.dumps([asdict(c) for c in concepts], indent=1))


def load_adapters(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    """Add the tokens to the text encoder and merge the LoRA into the U-Net's weights.

    Raises:
        UserError: If they leave weights that are not finite.
    """
    _add_tokens(pipeline, adapters)
    _merge_lora(pipeline, adapters)
    if spoilt := first_not_finite(pipeline.components):
        raise UserError(
            "finetune.path must hold adapters that leave all weights finite, got NaN or infinity "
            f"in {spoilt}: learn them anew with a lower finetune.lr, or name others"
        )


def _add_tokens(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    if adapters.tokens:
        dtype = pipeline.text_encoder.dtype
        embeddings = [embedding.to(dtype) for embedding in adapters.tokens.values()]
        pipeline.load_textual_inversion(embeddings, token=list(adapters.tokens))


def _merge_lora(pipeline: StableDiffusionImg2ImgPipeline, adapters: Adapters) -> None:
    if adapters.lora is None:
        return
    if isinstance(adapters.lora, Path):
        pipeline.load_lora_weights(adapters.lora.parent, weight_name=adapters.lora.name)
    else:
        pipeline.load_lora_weights(dict(adapters.lora))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
