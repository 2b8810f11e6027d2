"""Flat dataclasses as JSON, strict in both directions."""

import json
import math
from dataclasses import asdict, fields
from typing import Any, TypeVar

from online_aug.errors import UserError

Record = TypeVar("Record")


def to_json(record: Any, indent: int | None = None) -> str:
    """The fields of `record` as one JSON object.

    A number that is not finite (the loss of a run that diverged) becomes null: JSON has no NaN.
    """
    values = {name: _finite_or_none(value) for name, value in asdict(record).items()}
    return json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)


def from_json(cls: type[Record], text: str, where: str) -> Record:
    """The record that `to_json` wrote; null in a float field is NaN.

    Args:
        cls: Dataclass to build.
        text: One JSON object with exactly the fields of `cls`.
        where: Named in the error, such as `metrics.jsonl line 3`.

    Raises:
        UserError: If the text is no such object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} must be a JSON object, got: {error}") from None
    return cls(**_known_fields(cls, values, where))


def _known_fields(cls: Any, values: Any, where: str) -> dict[str, Any]:
    types = {field.name: field.type for field in fields(cls)}
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a JSON object, got {type(values).__name__}")
    if types.keys() != values.keys():
        differ = ", ".join(sorted(types.keys() ^ values.keys()))
        raise UserError(
            f"{where} must hold exactly the fields of this version, differs in: {differ}"
        )
    return {
        name: math.nan if value is None and types[name] is float else value
        for name, value in values.items()
    }


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
