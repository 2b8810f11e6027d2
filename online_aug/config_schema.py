"""What may be written in a configuration, told three ways: `--help`, error messages, JSON schema.

All are made from the models in `online_aug.config`. `python -m online_aug.config_schema` prints the
JSON schema; editors that read the first line of our YAML files complete and check keys with it.
"""

import json
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from online_aug.config import Config

Schema = Mapping[str, Any]

_KINDS = {"boolean": "true or false", "null": "null", "object": "a mapping", "string": "text"}
_COMPARED = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


@cache
def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a configuration file."""
    schema = Config.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@cache
def sections() -> dict[str, Schema]:
    """The schema of every section by its name, in the order of `Config`."""
    schema = json_schema()
    return {
        name: schema["$defs"][_reference(entry).rpartition("/")[2]]
        for name, entry in schema["properties"].items()
    }


def may_be_several(section: str) -> bool:
    """Whether a list of sections may stand in the place of one."""
    return "oneOf" in json_schema()["properties"][section]


@cache
def fields() -> dict[str, Schema]:
    """The schema of every key by its dotted path, such as `run.seed`."""
    return {
        f"{section}.{name}": field
        for section, schema in sections().items()
        for name, field in schema["properties"].items()
    }


def allowed(field: Schema) -> str:
    """Say in words what a field takes, such as `a number > 0 and <= 1, or null`."""
    if "anyOf" in field:
        return ", or ".join(dict.fromkeys(map(allowed, field["anyOf"])))
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return f"one of {', '.join(map(str, field['enum']))}"
    if field["type"] == "array":
        return _allowed_list(field)
    if field["type"] in ("integer", "number"):
        return _allowed_number(field)
    if "pattern" in field:
        return f"text matching {field['pattern']}"
    return "a path" if field.get("format") == "path" else _KINDS[field["type"]]


def describe() -> str:
    """List every key with its default, what it takes and what it means, grouped by section."""
    return "\n\n".join(_section_lines(name, schema) for name, schema in sections().items())


def shown(value: Any) -> str:
    """The value on one line as YAML reads it: text that could be something else is quoted."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reference(entry: Schema) -> str:
    return str(entry["$ref"] if "$ref" in entry else entry["oneOf"][0]["$ref"])


def _allowed_list(field: Schema) -> str:
    if "prefixItems" in field:
        return f"a list of {len(field['prefixItems'])}: each {allowed(field['prefixItems'][0])}"
    return f"a list of at least {field.get('minItems', 0)}: each {allowed(field['items'])}"


def _allowed_number(field: Schema) -> str:
    kind = "a whole number" if field["type"] == "integer" else "a number"
    limits = [f"{sign} {field[name]}" for name, sign in _COMPARED.items() if name in field]
    if "multipleOf" in field:
        limits.append(f"a multiple of {field['multipleOf']}")
    return f"{kind} {' and '.join(limits)}".rstrip()


def _section_lines(name: str, schema: Schema) -> str:
    lines = [f"{name}: {schema['description']}"]
    for key, field in schema["properties"].items():
        meaning = f"{field['description']} Takes {allowed(field)}."
        lines.append(f"  {name}.{key}={shown(field.get('default', {}))}")
        lines.extend(textwrap.wrap(meaning, 96, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
