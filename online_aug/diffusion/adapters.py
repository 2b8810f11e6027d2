"""Files that are added to a base model: names of the classes, their tokens, LoRA.

A result of our own fine-tuning is a folder with `pytorch_lora_weights.safetensors` (diffusers' LoRA
format) if LoRA was learned, `tokens_emb.safetensors` (one tensor `clip_l` of n x d, the format of
diffusers' pivotal tuning) if tokens were, and `concepts.json` (class, token and prompt of each
class). A token of several vectors has as many rows, one after the other. Stock diffusers loads the
first two, each in one call.

People also have adapters from elsewhere: diffusers' textual inversion, Diff-Mix's tokens,
DA-Fusion's merged tokens. `find_adapters` finds them; import_adapters.py reads them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from online_aug.config.sections import PLACE, PROMPT
from online_aug.diffusion.lora_files import holds_lora
from online_aug.documents import read_json, read_object
from online_aug.errors import UserError, one_line

LORA_FILE = "pytorch_lora_weights.safetensors"
TOKENS_FILE = "tokens_emb.safetensors"
CONCEPTS_FILE = "concepts.json"
"""Written last into a fine-tuning result: a folder that has it is whole."""

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
SURELY_READ = 75
"""Characters, spaces left out, that are never more tokens than CLIP reads."""


@dataclass(frozen=True)
class Concept:
    """The name of a class in prompts: a token of its own, or the class name."""

    name: str
    """Name of the class."""
    token: str | None
    """Placeholder token; None if the prompt holds the class name."""
    prompt: str


def class_concepts(
    class_names: Sequence[str], metaclass: str, template: str = PROMPT
) -> tuple[Concept, ...]:
    """Name the classes by tokens `<class_0>`, `<class_1>`, ... in a prompt template.

    The brackets keep one token from being the prefix of another, which diffusers would take for a
    token of several vectors.
    """
    tokens = [f"<class_{number}>" for number in range(len(class_names))]
    return tuple(
        Concept(name, token, _prompt(template, token, metaclass))
        for name, token in zip(class_names, tokens, strict=True)
    )


def named_concepts(
    class_names: Sequence[str], metaclass: str, template: str = PROMPT
) -> tuple[Concept, ...]:
    """Name the classes by their own names, for a model that has learned no tokens."""
    return tuple(
        Concept(name, None, _prompt(template, name.replace("_", " "), metaclass))
        for name in class_names
    )


def _prompt(template: str, named: str, metaclass: str) -> str:
    return template.replace(PLACE, f"{named} {metaclass}".strip()).strip()


def vector_tokens(token: str, num_vectors: int) -> list[str]:
    """Return diffusers' names of the vectors that a token stands for: itself, itself_1, ..."""
    return [token, *(f"{token}_{number}" for number in range(1, num_vectors))]


def rows_of_each(rows: Tensor, count: int) -> list[Tensor]:
    """Split the rows of all tokens: one row for each token, or a matrix if it has several.

    Raises:
        RuntimeError: If the tokens do not have equally many.
    """
    return [part.squeeze(0) for part in rows.reshape(count, -1, rows.shape[-1])]


@dataclass(frozen=True)
class Adapters:
    """Additions to a base model, ready to be loaded."""

    tokens: Mapping[str, Tensor]
    """Embedding of each new token: one row, or a matrix if the token stands for several."""
    lora: Path | Mapping[str, Tensor] | None
    """A file in diffusers' format, or its tensors by diffusers' names."""


def is_finetuned(folder: Path) -> bool:
    """Tell whether a folder holds a whole result of fine-tuning."""
    return (folder / CONCEPTS_FILE).is_file()


def read_result(folder: Path) -> Adapters:
    """Read the adapters of a result of our own fine-tuning.

    Raises:
        UserError: If a file of it is damaged.
    """
    tokens: dict[str, Tensor] = {}
    if (folder / TOKENS_FILE).is_file():
        try:
            concepts = read_json(folder / CONCEPTS_FILE)
            rows = load_file(folder / TOKENS_FILE)["clip_l"]
            names = [concept["token"] for concept in concepts]
            tokens = dict(zip(names, rows_of_each(rows, len(names)), strict=True))
        except Exception as error:  # whatever a damaged file makes the libraries raise
            raise UserError(
                f"finetune.path must hold whole results, got {folder} ({one_line(error)}): remove "
                "this folder to fine-tune anew"
            ) from error
    return Adapters(tokens, (folder / LORA_FILE) if (folder / LORA_FILE).is_file() else None)


@dataclass(frozen=True)
class AdapterFiles:
    """The files of adapters that were made elsewhere."""

    tokens: tuple[Path, ...]
    """One file for all classes, or one for each in a folder of its name."""
    lora: Path | None

    def digest(self, class_names: Sequence[str]) -> str:
        """Return the BLAKE2b digest of the files and of the classes that get their tokens."""
        digest = hashlib.blake2b(json.dumps(list(class_names)).encode(), digest_size=16)
        for path in (*self.tokens, *filter(None, [self.lora])):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()


def find_adapters(path: Path) -> AdapterFiles | None:
    """Find the adapters that `finetune.path` itself holds.

    Returns:
        None if the path is, or will be, a folder of our own results.

    Raises:
        UserError: If it is a file that does not exist or holds no tensors, or a folder with tensors
            of another kind.
    """
    if path.suffix in _TENSOR_FILES or path.is_file():
        return _single_file(path)
    files = [file for file in sorted(path.glob("*")) if _holds_tensors(file)]
    loras = [file for file in files if file.name in _LORA_FILES or holds_lora(file)]
    if len(loras) > 1:
        names = ", ".join(file.name for file in loras)
        raise UserError(f"finetune.path must name one LoRA, got {path} with {names}")
    tokens = _newest(path, _TOKEN_FILES, loras)
    by_class = () if tokens else _files_by_class(path)
    if tokens or loras or by_class:
        return AdapterFiles((tokens,) if tokens else by_class, next(iter(loras), None))
    if files:
        raise UserError(
            f"finetune.path must be a folder of results, or hold a LoRA, {TOKENS_FILE}, "
            f"learned_embeds* or *.pt, got {path} with {files[0].name}"
        )
    return None


def _single_file(path: Path) -> AdapterFiles:
    if not path.is_file() or path.suffix not in _TENSOR_FILES:
        raise UserError(
            "finetune.path must be a folder of results, or adapters made elsewhere "
            f"({', '.join(sorted(_TENSOR_FILES))}), got {path}, "
            f"which is {'another file' if path.is_file() else 'missing'}"
        )
    return AdapterFiles((), path) if holds_lora(path) else AdapterFiles((path,), None)


def _holds_tensors(path: Path) -> bool:
    return path.suffix in _TENSOR_FILES and path.is_file()  # opening a pipe would wait for ever


def _newest(folder: Path, patterns: Sequence[str], others: Sequence[Path]) -> Path | None:
    """Return the file of the first pattern that has one; of several steps the last."""
    for pattern in patterns:
        found = [path for path in folder.glob(pattern) if _holds_tensors(path)]
        found = [path for path in found if path not in others]
        if len(found) > 1 and "steps" not in pattern:
            names = ", ".join(sorted(path.name for path in found))
            raise UserError(f"finetune.path must name one file, got {folder} with {names}")
        if found:
            return max(found, key=lambda path: (len(path.stem), path.name))
    return None


def _files_by_class(folder: Path) -> tuple[Path, ...]:
    paths = [path for pattern in _TOKENS_BY_CLASS for path in folder.glob(pattern)]
    found = {path.parent: path for path in paths if _holds_tensors(path)}
    return tuple(found[place] for place in sorted(found))


def check_vectors(model: Path, concepts: Sequence[Concept], num_vectors: int, key: str) -> None:
    """Raise if prompts are longer than a text encoder reads once a token is several vectors.

    Args:
        model: Directory of the model.
        concepts: The classes, whose prompts differ in their tokens alone.
        num_vectors: Vectors of a token.
        key: The key that says how many, for the error.

    Raises:
        UserError: If so; names the most that fit.
    """
    if num_vectors == 1:
        return
    from transformers import CLIPTokenizer  # slow to import, rarely needed

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    read = read_object(model / "text_encoder" / "config.json").get("max_position_embeddings")
    limit = min(tokenizer.model_max_length, int(read or tokenizer.model_max_length))
    prompt, token = concepts[0].prompt, str(concepts[0].token)
    words = len(tokenizer(prompt.replace(token, "")).input_ids)  # with the marks of both ends
    most = (limit - words) // prompt.count(token)
    if num_vectors > most:
        raise UserError(
            f"{key} must give a token at most {most} vectors, beside which the text encoder reads "
            f"the other words of generation.prompt within its {limit} tokens, got {num_vectors}"
        )


def check_prompts(model: Path, prompts: Mapping[str, str]) -> None:
    """Raise if the text encoder of a model would read the same words for two classes.

    A tokenizer is loaded only if a prompt is long.

    Args:
        model: Directory of the model.
        prompts: Prompts by class.

    Raises:
        UserError: If so; names both classes.
    """
    if all(len("".join(prompt.split())) <= SURELY_READ for prompt in prompts.values()):
        return
    from transformers import CLIPTokenizer  # slow to import, rarely needed

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    seen: dict[tuple[int, ...], str] = {}
    for name, prompt in prompts.items():
        read = tuple(tokenizer(prompt, truncation=True)["input_ids"])
        if (other := seen.setdefault(read, name)) != name:
            raise UserError(
                f"classes must differ in what the model reads of their prompts, its first "
                f"{len(read)} tokens, got the same for {other!r} and {name!r}; rename their "
                "folders so that they differ early, or let tokens be learned by finetune.mode"
            )
