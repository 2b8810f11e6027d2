"""The keys of a configuration, described in three ways: JSON schema, `--help`, error lines.

All three are made from the declarations of the settings, those of the methods included. Editors
that read the first line of our YAML files complete and check keys with `configs/schema.json`.
"""

import json
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.methods.registry import DEFAULT, METHODS, find_method, method_names

Schema = Mapping[str, Any]


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a configuration file."""
    schema = Config.model_json_schema(mode="validation")
    schema["$defs"] |= {name: _method_schema(name) for name in METHODS}
    schema["$defs"]["Method"] = {
        "description": (
            "The method that makes the images; or a list of methods, which share the images of a "
            "run."
        ),
        "anyOf": [
            *({"$ref": f"#/$defs/{name}"} for name in METHODS),
            {"properties": {"name": {"pattern": r"\.py:\w+$"}}, "required": ["name"]},
        ],
    }
    one = {"$ref": "#/$defs/Method"}
    schema["properties"]["method"] = {
        "anyOf": [one, {"type": "array", "minItems": 1, "items": one}]
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _method_schema(name: str) -> dict[str, Any]:
    method = find_method(name)
    schema = method.Settings.model_json_schema(mode="validation")
    about = schema["properties"]["name"]["description"]
    named = {"const": name, "type": "string", "description": about}
    return {
        **schema,
        "title": name,
        "description": (method.__doc__ or name).partition("\n")[0],
        "properties": {**schema["properties"], "name": named},
        "required": [] if name == DEFAULT else ["name"],
    }


@cache
def sections() -> dict[str, Schema]:
    """Return the schema of every section by its name, in the order of `Config`.

    That of `method` has the keys of all methods.
    """
    schema = json_schema()
    found: dict[str, Schema] = {}
    for name, entry in schema["properties"].items():
        if name == "method":
            found[name] = {**schema["$defs"]["Method"], "properties": _all_method_fields()}
        else:
            found[name] = schema["$defs"][entry["$ref"].rpartition("/")[2]]
    return found


@cache
def fields() -> dict[str, Schema]:
    """Return the schema of every key by its dotted path, such as `run.seed`."""
    return {
        f"{section}.{name}": field
        for section, schema in sections().items()
        for name, field in schema["properties"].items()
    }


@cache
def method_fields(name: str) -> Mapping[str, Schema]:
    """Return the schema of every key of one method."""
    fields: dict[str, Schema] = find_method(name).Settings.model_json_schema()["properties"]
    return {**fields, "name": {**fields["name"], "default": DEFAULT}}


def methods_with(key: str) -> list[str]:
    """List the methods that take a key of `method`."""
    return [name for name in method_names() if key in _fields_if_usable(name)]


def _all_method_fields() -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    for name in method_names():
        found = {**_fields_if_usable(name), **found}
    order = [key for name in method_names() for key in _fields_if_usable(name)]
    return {key: found[key] for key in dict.fromkeys(order)}


def _fields_if_usable(name: str) -> Mapping[str, Schema]:
    try:
        return method_fields(name)
    except UserError:  # of another package, told if it is asked for
        return {}


def allowed(field: Schema) -> str:
    """Say in words what a key takes, such as `a number > 0 and <= 1, or null`."""
    if "anyOf" in field:
        return ", or ".join(dict.fromkeys(map(allowed, field["anyOf"])))
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return f"one of {', '.join(map(str, field['enum']))}"
    kind = field.get("type")
    if kind == "array":
        return _allowed_list(field)
    if kind in ("integer", "number"):
        return _allowed_number(field)
    if "pattern" in field:
        return f"text matching {field['pattern']}"
    if field.get("format") == "path":
        return "a path"
    return _JSON_KINDS.get(str(kind), "a value of its own kind")


def takes_only_text(field: Schema) -> bool:
    """Return whether a key takes text, or null, and no number, truth value, list or mapping."""
    kinds = {branch.get("type") for branch in field.get("anyOf", [field])}
    return "string" in kinds and kinds <= {"string", "null"}


_JSON_KINDS = {"boolean": "true or false", "null": "null", "object": "a mapping", "string": "text"}
_COMPARED = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


def _allowed_list(field: Schema) -> str:
    if "prefixItems" in field:
        return f"a list of {len(field['prefixItems'])}: each {allowed(field['prefixItems'][0])}"
    least = f" of at least {field['minItems']}" if field.get("minItems") else ""
    return f"a list{least}: each {allowed(field['items'])}"


def _allowed_number(field: Schema) -> str:
    kind = "a whole number" if field["type"] == "integer" else "a number"
    limits = [f"{sign} {field[name]}" for name, sign in _COMPARED.items() if name in field]
    if "multipleOf" in field:
        limits.append(f"a multiple of {field['multipleOf']}")
    return f"{kind} {' and '.join(limits)}".rstrip()


def shown(value: Any) -> str:
    """Write a value on one line as YAML reads it: text that could be something else is quoted."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def describe() -> str:
    """List every key with its default, what it takes and what it means, grouped by section."""
    return "\n\n".join(_section_lines(name, schema) for name, schema in sections().items())


def _section_lines(name: str, schema: Schema) -> str:
    lines = [f"{name}: {schema['description']}"]
    for key, field in schema["properties"].items():
        lines.append(f"  {name}.{key}={shown(field.get('default', {}))}")
        meaning = _method_meaning(key, field) if name == "method" else _meaning(field)
        lines += [line for paragraph in meaning for line in _wrapped(paragraph)]
    return "\n".join(lines)


def _meaning(field: Schema) -> list[str]:
    return [f"{field.get('description', '')} Takes {allowed(field)}."]


def _method_meaning(key: str, field: Schema) -> list[str]:
    if key == "name":
        about = (f"{name}: {_first_line(name)}" for name in method_names())
        return [f"{field['description']} Takes a name below, or FILE.py:CLASS.", *about]
    owners = methods_with(key)
    if owners == method_names():
        return _meaning(field)
    (meaning,) = _meaning(field)
    others = [
        name for name in owners if method_fields(name)[key].get("default") != field["default"]
    ]
    defaults = (f"{name}: {shown(method_fields(name)[key].get('default'))}." for name in others)
    return [" ".join([meaning, f"Key of {', '.join(owners)}.", *defaults])]


def _first_line(name: str) -> str:
    try:
        return (find_method(name).__doc__ or "").partition("\n")[0]
    except UserError as error:
        return str(error)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
