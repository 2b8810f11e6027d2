"""Tokens and LoRA that somebody trained elsewhere, checked against the classes and the model.

Token files differ in how they name classes: Diff-Mix's holds a table of names, DA-Fusion's and
diffusers' have the class in the token, diffusers' pivotal tuning has rows in the order of classes.

LoRA under the names that diffusers has given its matrices over the years, for one U-Net.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from online_aug.diffusion.adapters import CONCEPTS_FILE, AdapterFiles, Adapters, Concept
from online_aug.diffusion.directory import Shape, tensor_shapes
from online_aug.errors import UserError, one_line

_SHOWN = 4


def import_adapters(
    files: AdapterFiles, concepts: Sequence[Concept], mode: str, model: Path
) -> Adapters:
    """Read adapters that were made elsewhere, each class' token under our name for it.

    Args:
        files: Where they are.
        concepts: Class and token, by label; tokens are None where the prompts hold names.
        mode: `finetune.mode`, which says whether tokens and LoRA must be there.
        model: Directory of the base model.

    Raises:
        UserError: If tokens or LoRA are missing or not asked for, a class has no token, or they are
            of another model.
    """
    _check_kinds(files, mode)
    tokens: dict[str, Tensor] = {}
    if files.tokens:
        found = {name: row for path in files.tokens for name, row in _tokens(path).items()}
        tokens = _of_classes(found, concepts, files.tokens[0])
        _check_width(tokens, files.tokens[0], model)
    if files.lora is None:
        return Adapters(tokens, None)
    lora = lora_of_unet(read_tensors(files.lora), files.lora, model)
    return Adapters(tokens, files.lora if _scales(files.lora) else lora)


def read_tensors(path: Path) -> dict[str, Any]:
    """What a file of tensors holds; nothing in it is run.

    Raises:
        UserError: If it cannot be read, or is anything but a mapping of tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        reason = one_line(error).partition(". ")[0]  # PyTorch goes on with what not to do
        raise UserError(f"finetune.path must hold tensors only, got {path} ({reason})") from error


def _scales(path: Path) -> bool:
    """The file's head says how strong its LoRA is; diffusers reads it."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, framework="pt") as file:
        return "lora_adapter_metadata" in (file.metadata() or {})


def _check_kinds(files: AdapterFiles, mode: str) -> None:
    wanted = {"lora": {"LoRA"}, "textual_inversion": {"tokens"}}.get(mode, {"LoRA", "tokens"})
    found = {kind for kind, there in (("LoRA", files.lora), ("tokens", files.tokens)) if there}
    if wanted != found:
        of = "joint" if len(found) == 2 else "lora" if files.lora else "textual_inversion"
        place = (*files.tokens, files.lora)[0]
        raise UserError(
            f"finetune.path must hold {' and '.join(sorted(wanted))} for finetune.mode {mode}, got "
            f"{' and '.join(sorted(found))} in {place}; set finetune.mode={of} to use what is there"
        )


def _tokens(path: Path) -> dict[str, Tensor]:
    """Embeddings by class name, by class number, or by the class in the token."""
    content = read_tensors(path)
    if "learned_embeds_dict" in content:
        return _of_diff_mix(content, path)
    if "clip_l" in content:
        return _rows(content, path)
    if all(isinstance(value, Mapping) for value in content.values()):
        content = {name: next(iter(inner.values()), None) for name, inner in content.items()}
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"finetune.path must hold an embedding for each token, got {path}")
    if path.stem == "learned_embeds" and len(content) == 1:
        content[path.parent.name] = next(iter(content.values()))
    return content


def _of_diff_mix(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    rows, named = content["learned_embeds_dict"], content.get("name2placeholder") or {}
    lacking = [token for token in named.values() if token not in rows]
    if lacking:
        raise UserError(
            f"finetune.path must hold an embedding for each token, got none for {lacking[0]} "
            f"in {path}"
        )
    return {name: rows[token] for name, token in named.items()} or dict(rows)


def _rows(content: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    rows = content["clip_l"]
    if "clip_g" in content:
        raise UserError(
            f"finetune.path must be of a Stable Diffusion 1.x or 2.x, got SDXL's {path}"
        )
    concepts = path.parent / CONCEPTS_FILE
    if not concepts.is_file():
        return {f"<class_{number}>": row for number, row in enumerate(rows)}
    names = [concept["name"] for concept in json.loads(concepts.read_text())]
    return dict(zip(names, rows, strict=True))


def _of_classes(
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
    spoken = _spoken(found, path)
    lacking = [concept.name for concept in concepts if _say(concept.name) not in spoken]
    if lacking:
        raise UserError(
            f"finetune.path must hold a token for every class, got none for {_few(lacking)} "
            f"in {path}, which has {_few(list(found))}"
        )
    return {str(concept.token): spoken[_say(concept.name)] for concept in concepts}


def _spoken(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    spoken: dict[str, Tensor] = {}
    for name, tensor in found.items():
        said = _say(name)
        if said in spoken and not torch.equal(spoken[said], tensor):
            raise UserError(
                f"finetune.path must hold one token a class, got two {name!r} in {path}"
            )
        spoken[said] = tensor
    return spoken


def _say(name: str) -> str:
    """A name as tools agree on it: some write blanks as underscores, some put it in brackets."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _check_width(tokens: Mapping[str, Tensor], path: Path, model: Path) -> None:
    settings = json.loads((model / "text_encoder" / "config.json").read_text())
    width = settings["hidden_size"]
    for tensor in tokens.values():
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != width or not tensor.isfinite().all():
            raise UserError(
                f"finetune.path must hold finite tokens of width {width}, that of {model}, "
                f"got shape {list(tensor.shape)} in {path}"
            )


TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of an attention that LoRA is added to."""

_NAME = re.compile(
    r"(?:unet\.)?(?P<module>[\w.]+?)"
    r"(?:_lora\.|\.lora\.|\.lora_)(?P<side>down|up|A|B)(?:\.default)?\.weight"
)
_SIDES = {"down": "A", "up": "B", "A": "A", "B": "B"}


def check_targets(model: Path, mode: str) -> None:
    """Refuse to learn LoRA for a model whose U-Net has no attention to add it to.

    Raises:
        UserError: If it has none.
    """
    names = tensor_shapes(model / "unet")
    if not any(name.endswith(tuple(f".{target}.weight" for target in TARGETS)) for name in names):
        raise UserError(
            "generation.model must have attention in its U-Net for finetune.mode "
            f"{mode}, got {model} without {', '.join(TARGETS)}; set finetune.enabled=false"
        )


def lora_of_unet(content: Mapping[str, Any], path: Path, model: Path) -> dict[str, Tensor]:
    """The matrices under today's names, each for a layer of this model that they fit.

    Args:
        content: Of a LoRA file: diffusers' of any age, peft's, Diff-Mix's attention processors.
        path: The file, for messages.
        model: Directory of the base model.

    Raises:
        UserError: If a name is not that of a U-Net's LoRA, or a matrix fits no layer.
    """
    shapes = tensor_shapes(model / "unet")
    found: dict[str, Tensor] = {}
    for name, tensor in content.items():
        parts = _NAME.fullmatch(name.replace(".processor", ""))
        if parts is None or not isinstance(tensor, Tensor):
            raise UserError(
                f"finetune.path must hold a LoRA of the U-Net in diffusers' format, "
                f"got {name} in {path}"
            )
        module = re.sub(r"\.to_out$", ".to_out.0", parts["module"])
        side = _SIDES[parts["side"]]
        _check_fit(shapes.get(f"{module}.weight"), tensor, side, f"{name} in {path}", model)
        found[f"unet.{module}.lora_{side}.weight"] = tensor
    for name in found:
        if (
            name.replace(".lora_A.", ".lora_B.") not in found
            or name.replace("_B.", "_A.") not in found
        ):
            raise UserError(
                f"finetune.path must hold both matrices of a LoRA, got {name} in {path}"
            )
    return found


def _check_fit(layer: Shape | None, matrix: Tensor, side: str, place: str, model: Path) -> None:
    if layer is None:
        raise UserError(f"finetune.path must be of {model}, which has no layer for {place}")
    expected, got = (layer[1], matrix.shape[1]) if side == "A" else (layer[0], matrix.shape[0])
    if expected != got:
        raise UserError(
            f"finetune.path must be of {model}, which needs {expected} "
            f"{'inputs' if side == 'A' else 'outputs'}, got {got} for {place}"
        )
