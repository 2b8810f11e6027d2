"""Read tokens and LoRA that were trained elsewhere, checked against the classes and the model.

Token files differ in how they name classes: Diff-Mix's holds a table of names, DA-Fusion's and
diffusers' have the class in the token, diffusers' pivotal tuning has rows in the order of classes.
A token may stand for several vectors: a matrix, or rows under its name with _1, _2, ... behind it.
LoRA files are read in lora_files.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from online_aug.config.sections import FinetuneConfig
from online_aug.diffusion.adapters import (
    CONCEPTS_FILE,
    AdapterFiles,
    Adapters,
    Concept,
    rows_of_each,
)
from online_aug.diffusion.lora_files import LoraFile
from online_aug.diffusion.parts import read_settings
from online_aug.diffusion.weights import read_tensors
from online_aug.documents import DocumentError, read_json
from online_aug.errors import UserError, one_line

_FURTHER_VECTOR = re.compile(r"(?P<token>.+>)_\d+")
_SHOWN = 4
"""Names listed in an error before the rest is only counted."""


def import_adapters(
    files: AdapterFiles, concepts: Sequence[Concept], config: FinetuneConfig, model: Path
) -> Adapters:
    """Read adapters that were made elsewhere and give each class's token our name for it.

    Args:
        files: The files that were found.
        concepts: Class and token, by label; tokens are None if the prompts hold class names.
        config: Its mode says whether tokens and LoRA must be there; its number of vectors is that
            of tokens without names, all others tell theirs.
        model: Directory of the base model.

    Raises:
        UserError: If tokens or LoRA are missing or not asked for, a class has no token, or they are
            of another model.
    """
    _check_kinds(files, config.mode)
    tokens: dict[str, Tensor] = {}
    if files.tokens:
        parts = [_read_tokens(path, config.num_vectors) for path in files.tokens]
        found = {name: row for part in parts for name, row in part.items()}
        tokens = _tokens_of_classes(found, concepts, files.tokens[0])
        _check_width(tokens, files.tokens[0], model)
    if files.lora is None:
        return Adapters(tokens, None)
    return Adapters(tokens, LoraFile(files.lora).read(model))


def _check_kinds(files: AdapterFiles, mode: str) -> None:
    wanted = {"lora": {"LoRA"}, "textual_inversion": {"tokens"}}.get(mode, {"LoRA", "tokens"})
    found = {kind for kind, there in (("LoRA", files.lora), ("tokens", files.tokens)) if there}
    if wanted != found:
        fitting = "joint" if len(found) == 2 else "lora" if files.lora else "textual_inversion"
        first = (*files.tokens, files.lora)[0]
        raise UserError(
            f"finetune.path must hold {' and '.join(sorted(wanted))} for finetune.mode {mode}, got "
            f"{' and '.join(sorted(found))} in {first}; set finetune.mode={fitting} to use what is "
            "there"
        )


def _read_tokens(path: Path, num_vectors: int) -> dict[str, Tensor]:
    """Read embeddings by class name, by class number, or by the class in the token."""
    content = read_tensors(path, "finetune.path")
    if "learned_embeds_dict" in content:
        return _diff_mix_tokens(content, path)
    if "clip_l" in content:
        return _rows_by_class(content, path, num_vectors)
    if all(isinstance(value, Mapping) for value in content.values()):
        content = {name: next(iter(inner.values()), None) for name, inner in content.items()}
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"finetune.path must hold an embedding for each token, got {path}")
    if path.stem == "learned_embeds" and len(content) == 1:
        content[path.parent.name] = next(iter(content.values()))
    return _joined(content)


def _joined(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the vectors of a token together if each has a name: `<jay>`, `<jay>_1`, `<jay>_2`."""
    found: dict[str, Tensor] = {}
    for name, tensor in content.items():
        further = _FURTHER_VECTOR.fullmatch(name)
        if further and further["token"] in content:
            continue
        rows = [tensor]
        while name.endswith(">") and f"{name}_{len(rows)}" in content:
            rows.append(content[f"{name}_{len(rows)}"])
        found[name] = torch.stack(rows) if len(rows) > 1 else tensor
    return found


def _diff_mix_tokens(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    rows, named = content["learned_embeds_dict"], content.get("name2placeholder") or {}
    lacking = [token for token in named.values() if token not in rows]
    if lacking:
        raise UserError(
            f"finetune.path must hold an embedding for each token, got none for {lacking[0]} "
            f"in {path}"
        )
    return {name: rows[token] for name, token in named.items()} or dict(rows)


def _rows_by_class(
    content: Mapping[str, Tensor], path: Path, num_vectors: int
) -> dict[str, Tensor]:
    rows = content["clip_l"]
    if "clip_g" in content:
        raise UserError(
            f"finetune.path must be of a Stable Diffusion 1.x or 2.x, got SDXL's {path}"
        )
    concepts = path.parent / CONCEPTS_FILE
    if not concepts.is_file():
        if len(rows) % num_vectors:
            raise UserError(
                f"finetune.path must hold {num_vectors} vectors for each token, as "
                f"finetune.num_vectors says, got {len(rows)} in {path}"
            )
        parts = rows_of_each(rows, len(rows) // num_vectors)
        return {f"<class_{number}>": part for number, part in enumerate(parts)}
    try:
        names = [str(concept["name"]) for concept in read_json(concepts)]
        return dict(zip(names, rows_of_each(rows, len(names)), strict=True))
    except (DocumentError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"finetune.path must name the class of each row of {path}, cannot use {concepts}: "
            f"{one_line(error)}"
        ) from None


def _tokens_of_classes(
    found: Mapping[str, Tensor], concepts: Sequence[Concept], path: Path
) -> dict[str, Tensor]:
    numbers = {f"<class_{label}>": concept.name for label, concept in enumerate(concepts)}
    if all(re.fullmatch(r"<class_\d+>", name) for name in found):
        if len(found) != len(concepts):
            raise UserError(
                f"finetune.path must hold a token for each of {len(concepts)} classes, "
                f"got {len(found)} in {path}"
            )
        found = {numbers.get(name, name): tensor for name, tensor in found.items()}
    by_name = _by_plain_name(found, path)
    lacking = [concept.name for concept in concepts if _plain(concept.name) not in by_name]
    if lacking:
        raise UserError(
            f"finetune.path must hold a token for every class, got none for {_few(lacking)} "
            f"in {path}, which has {_few(list(found))}"
        )
    return {str(concept.token): by_name[_plain(concept.name)] for concept in concepts}


def _by_plain_name(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    by_name: dict[str, Tensor] = {}
    for name, tensor in found.items():
        plain = _plain(name)
        if plain in by_name and not torch.equal(by_name[plain], tensor):
            raise UserError(
                f"finetune.path must hold one token a class, got two {name!r} in {path}"
            )
        by_name[plain] = tensor
    return by_name


def _plain(name: str) -> str:
    """Reduce a name to what tools agree on: some write blanks as underscores, some add brackets."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _check_width(tokens: Mapping[str, Tensor], path: Path, model: Path) -> None:
    width = read_settings(model / "text_encoder" / "config.json").get("hidden_size")
    for tensor in tokens.values():
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != width or not tensor.isfinite().all():
            raise UserError(
                f"finetune.path must hold finite tokens of width {width}, that of {model}, "
                f"got shape {list(tensor.shape)} in {path}"
            )
