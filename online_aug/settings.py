"""The types that keys of a configuration have: ranges, and the forms that YAML may give them."""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from online_aug.documents import DocumentError, read_object


def _exponent(value: Any) -> Any:
    # YAML 1.1 wants a dot and a sign in 1.0e-4, so PyYAML reads 1e-4 as text.
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _from_json_file(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return read_object(Path(value))
    except DocumentError as error:
        raise ValueError(
            "classifier.deepspeed must be a mapping or a JSON file that holds one: "
            f"cannot use {value}: {error}"
        ) from None


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _for_each_channel(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


# Last in the annotation of every float, so that the range is checked after it.
Exponent = BeforeValidator(_exponent)

DeepSpeedSettings = BeforeValidator(_from_json_file, json_schema_input_type=dict[str, Any] | Path)
"""A mapping, or a JSON file with one; the resolved configuration holds the mapping."""

AsTuple = BeforeValidator(_as_tuple)
"""One value may stand for a list of one."""

Fraction = Annotated[float, Field(ge=0, le=1), Exponent]
NotNegative = Annotated[float, Field(ge=0), Exponent]
Positive = Annotated[float, Field(gt=0), Exponent]
Strength = Annotated[float, Field(gt=0, le=1), Exponent]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=16, le=4096)]
Text = Annotated[str, Field(pattern=r"\S")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

_Strengths = Annotated[tuple[Strength, ...], Field(min_length=1)]
Strengths = Annotated[
    _Strengths, BeforeValidator(_as_tuple, json_schema_input_type=Strength | _Strengths)
]
_Channels = tuple[Fraction, Fraction, Fraction]
Channels = Annotated[
    _Channels, BeforeValidator(_for_each_channel, json_schema_input_type=Fraction | _Channels)
]
_Deviations = tuple[Strength, Strength, Strength]
Deviations = Annotated[
    _Deviations, BeforeValidator(_for_each_channel, json_schema_input_type=Strength | _Deviations)
]
_Devices = Annotated[tuple[str, ...], Field(min_length=1)]
Devices = Annotated[_Devices, BeforeValidator(_as_tuple, json_schema_input_type=str | _Devices)]


Setting = TypeVar("Setting")


def decided(value: Setting | None) -> Setting:
    """Return a setting whose default is null, once something else has decided it."""
    assert value is not None, "the configuration is to be settled first"
    return value


class Section(BaseModel):
    """A section of the configuration: refuses unknown keys, never changes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
