"""LoRA files that were trained elsewhere: which layout they have, and their matrices by our names.

Layouts: diffusers' of any age, Diff-Mix's attention processors, kohya's (layers with underscores,
a strength of their own) and peft's (strength in `adapter_config.json`).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from online_aug.diffusion.weights import Shape, read_tensors, tensor_shapes
from online_aug.documents import DocumentError, read_object
from online_aug.errors import UserError

PEFT_SETTINGS = "adapter_config.json"
_LORA = re.compile(r"(^lora_(unet|te)|[._]lora[._]|\.lora_[AB]\.|\.hada_w|\.lokr_w)")
"""What some name in every LoRA file has, and none in a file of tokens."""
_LORA_NAME = re.compile(
    r"(?:base_model\.model\.)?(?:unet\.)?(?P<module>[\w.]+?)"
    r"(?:_lora\.|\.lora\.|\.lora_)(?P<side>down|up|A|B)(?:\.default)?\.weight"
)
_KOHYA_NAME = re.compile(r"lora_unet_(?P<layer>\w+)\.lora_(?P<side>down|up)\.weight")
_SIDES = {"down": "A", "up": "B", "A": "A", "B": "B"}
_OF_TEXT_ENCODER = ("text_encoder.", "text_model.", "lora_te", "base_model.model.text_model.")


def holds_lora(path: Path) -> bool:
    """Return whether a file of tensors holds a LoRA rather than tokens, by the names in it."""
    return any(_LORA.search(name) for name in _names_in(path))


def _names_in(path: Path) -> list[str]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        found = torch.load(path, map_location="meta", weights_only=True)
        return [name for name in found if isinstance(name, str)]
    except Exception:  # whoever reads it as a whole says what is wrong with it
        return []


class LoraFile(NamedTuple):
    """A LoRA file with the configuration key that names it, for errors."""

    path: Path
    """The file; peft's settings are looked for beside it."""
    key: str = "finetune.path"

    def error(self, rule: str) -> UserError:
        """Return the error for a file that breaks a rule."""
        return UserError(f"{self.key} must {rule}")

    def read(self, model: Path) -> Path | dict[str, Tensor]:
        """Read its matrices by today's names, each checked against its layer of a model.

        Args:
            model: Directory of the base model.

        Returns:
            The matrices, or the file itself if diffusers reads from its head how strong they are.

        Raises:
            UserError: If it is damaged or in another layout, adapts the text encoder too, or does
                not fit.
        """
        matrices = _of_unet(read_tensors(self.path, self.key), self, model)
        return self.path if self._states_strength() else matrices

    def _states_strength(self) -> bool:
        if self.path.suffix != ".safetensors":
            return False
        with safe_open(self.path, framework="pt") as file:
            return "lora_adapter_metadata" in (file.metadata() or {})


def _of_unet(content: Mapping[str, Any], file: LoraFile, model: Path) -> dict[str, Tensor]:
    for name in content:
        if name.startswith(_OF_TEXT_ENCODER):
            raise file.error(
                f"hold a LoRA of the U-Net alone, got {name} of the text encoder in {file.path}: "
                "train or export it without the text encoder"
            )
    shapes = tensor_shapes(model / "unet")
    if any(name.startswith("lora_unet_") for name in content):
        named = _from_kohya(content, shapes, file)
    else:
        named = _from_diffusers(content, file)
        strength = _strength_of_peft(content, file)
        named = {name: _scaled(name, tensor, strength) for name, tensor in named.items()}
    found = {}
    for (module, side, name), tensor in named.items():
        rule = _misfit(shapes.get(f"{module}.weight"), tensor, side, f"{name} in {file.path}")
        if rule is not None:
            raise file.error(f"be of {model}, {rule}")
        found[f"unet.{module}.lora_{side}.weight"] = tensor
    _check_pairs(found, file)
    return found


_Named = dict[tuple[str, str, str], Tensor]
"""Matrices by layer, side (A or B) and their names in the file."""


def _from_diffusers(content: Mapping[str, Any], file: LoraFile) -> _Named:
    found: _Named = {}
    for name, tensor in content.items():
        parts = _LORA_NAME.fullmatch(name.replace(".processor", ""))
        if parts is None or not isinstance(tensor, Tensor):
            raise _unknown(name, file)
        module = re.sub(r"\.to_out$", ".to_out.0", parts["module"])
        found[module, _SIDES[parts["side"]], name] = tensor
    return found


def _from_kohya(content: Mapping[str, Any], shapes: Mapping[str, Shape], file: LoraFile) -> _Named:
    modules = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    by_layer = {module.replace(".", "_"): module for module in modules}
    found: _Named = {}
    for name, tensor in content.items():
        if name.endswith(".alpha"):
            continue
        parts = _KOHYA_NAME.fullmatch(name)
        if parts is None or not isinstance(tensor, Tensor) or parts["layer"] not in by_layer:
            raise _unknown(name, file)
        side = _SIDES[parts["side"]]
        alpha = content.get(f"lora_unet_{parts['layer']}.alpha")
        if side == "B" and isinstance(alpha, Tensor):  # rank is the width of the second matrix
            tensor = tensor * (float(alpha) / tensor.shape[1])
        found[by_layer[parts["layer"]], side, name] = tensor
    return found


def _strength_of_peft(content: Mapping[str, Any], file: LoraFile) -> float:
    """Return the factor of the product of two matrices that peft keeps beside its file."""
    if not any(name.startswith("base_model.model.") for name in content):
        return 1.0
    try:
        settings = read_object(file.path.parent / PEFT_SETTINGS)
        alpha, rank = settings.get("lora_alpha"), settings.get("r")
        if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1:
            raise DocumentError("lora_alpha and r must be numbers")
        if varied := [n for n in ("alpha_pattern", "rank_pattern", "use_dora") if settings.get(n)]:
            raise DocumentError(f"{varied[0]} is set, which is not supported")
    except DocumentError as error:
        raise file.error(
            f"have peft's {PEFT_SETTINGS} beside {file.path}, which says how strong the LoRA is: "
            f"{error}"
        ) from None
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _scaled(place: tuple[str, str, str], tensor: Tensor, strength: float) -> Tensor:
    return tensor * strength if place[1] == "B" and strength != 1 else tensor


def _unknown(name: str, file: LoraFile) -> UserError:
    return file.error(
        "hold a LoRA of the U-Net in the layout of diffusers, kohya or peft, "
        f"got {name} in {file.path}"
    )


def _misfit(layer: Shape | None, matrix: Tensor, side: str, place: str) -> str | None:
    if layer is None:
        return f"which has no layer for {place}"
    if matrix.ndim != len(layer):
        return f"got a matrix of {matrix.ndim} dimensions for {place}, whose layer has {len(layer)}"
    expected, got = (layer[1], matrix.shape[1]) if side == "A" else (layer[0], matrix.shape[0])
    if expected != got:
        sort = "inputs" if side == "A" else "outputs"
        return f"which needs {expected} {sort}, got {got} for {place}"
    return None


def _check_pairs(lora: Mapping[str, Tensor], file: LoraFile) -> None:
    for name in lora:
        down, up = name.replace(".lora_B.", ".lora_A."), name.replace(".lora_A.", ".lora_B.")
        if down not in lora or up not in lora:
            raise file.error(f"hold both matrices of a LoRA, got {name} in {file.path}")
        if lora[down].shape[0] != lora[up].shape[1]:
            raise file.error(f"hold matrices of one rank for a layer, got {name} in {file.path}")
