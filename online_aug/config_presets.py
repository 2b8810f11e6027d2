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

    Args:
        values: Sections by name; not checked yet, so anything may stand in the place of one.
    """
    method = values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
    sections = {section: values.get(section, {}) for section in preset}
    return dict(values) | {
        section: {**preset[section], **said}
        for section, said in sections.items()
        if isinstance(said, dict)
    }
