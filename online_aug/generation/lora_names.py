"""LoRA under the names that diffusers has given its matrices over the years, for one U-Net."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from online_aug.errors import UserError
from online_aug.generation.weights import Shape, tensor_shapes

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
