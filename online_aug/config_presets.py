"""Defaults that come with the name of a method, where its paper sets more than the method itself.

They stand between the defaults of all methods and what the file says.
"""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "da_fusion": {
        "method": {"strength": [1.0, 0.75, 0.5, 0.25]},
        "mixing": {"policy": "local", "synthetic_probability": 0.5},
        "generation": {"variants_per_image": 10},
        "finetune": {"mode": "textual_inversion"},
    },
}


def with_presets(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and the command line say, with the presets of the method they name.

    Of several methods each gets its own `method` keys; what the run shares stays as it is said.

    Args:
        values: Sections by name; not checked yet, so anything may stand in the place of one.
    """
    method = values.get("method")
    if isinstance(method, list):
        several = [_filled(one, _preset_of(one).get("method", {})) for one in method]
        return {**values, "method": several}
    preset = _preset_of(method)
    filled = {name: _filled(values.get(name, {}), keys) for name, keys in preset.items()}
    return {**values, **filled}


def _preset_of(method: Any) -> Mapping[str, Mapping[str, Any]]:
    name = method.get("name") if isinstance(method, dict) else None
    return PRESETS.get(name, {}) if isinstance(name, str) else {}


def _filled(section: Any, preset: Mapping[str, Any]) -> Any:
    return {**preset, **section} if isinstance(section, dict) else section
