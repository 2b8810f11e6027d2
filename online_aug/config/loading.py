"""A configuration from a YAML file and `key.sub=value` overrides, and back to YAML.

Precedence: default, then the method's presets, then file, then command line. Everything that is
wrong is reported at once, one line each, before anything is started or written.

What may be written in a configuration, told three ways: `--help`, error messages, JSON schema.

All are made from the models in `online_aug.config`. `online-aug schema` prints the
JSON schema; editors that read the first line of our YAML files complete and check keys with it.

YAML as plain data: what JSON can hold, no key twice, no object tags, no dates.
"""

import hashlib
import json
import re
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cache.text import nearest_names
from online_aug.config import Config
from online_aug.config.methods import ONE, SEVERAL, with_presets
from online_aug.errors import UserError

Values = dict[str, Any]
Place = tuple[str | int, ...]
"""Where in the values something is."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration: defaults, presets, the file, the overrides.

    Args:
        path: A YAML file that holds what differs from the defaults; it may be empty.
        overrides: `key.sub=value`, the value read as YAML; of two for one key the last holds.

    Raises:
        UserError: If anything is wrong; the message holds one line for each mistake.
    """
    values, problems = _read_file(path)
    for override in overrides:
        try:
            _apply(values, override)
        except UserError as error:
            problems.append(str(error))
    config, invalid = _validate(with_presets(values))
    problems.extend(invalid)
    if config is None or problems:
        lines = dict.fromkeys(" ".join(problem.splitlines()) for problem in problems)
        raise UserError("\n".join(lines))
    return config


def resolved_yaml(config: Config) -> str:
    """Every key with its value, as YAML that `load_config` reads back to the same configuration."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def config_digest(config: Config) -> str:
    """BLAKE2b over all values, 32 hexadecimal digits; order and form of the file do not count."""
    canonical = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _plain(config: Config) -> Values:
    return config.model_dump(mode="json")


def _read_file(path: Path) -> tuple[Values, list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, [f"the first argument must be an existing YAML file, got {path}"]
    except UnicodeDecodeError:
        return {}, [f"{path} must be text in UTF-8, which it is not"]
    except (OSError, ValueError) as error:
        return {}, [f"{path} must be a readable YAML file: {error}"]
    try:
        values = read_yaml(text)
    except ValueError as error:
        return {}, [f"{path} must be YAML: {error}"]
    if values is None:
        return {}, []
    if not isinstance(values, dict):
        return {}, [f"{path} must hold a mapping of sections, got {shown(values)}"]
    return values, []


def _apply(values: Values, override: str) -> None:
    dotted, equals, text = override.partition("=")
    *parents, last = dotted.split(".")
    if not equals or not all((*parents, last)):
        raise UserError(f"an override must be key.sub=value, got {shown(override)}")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{dotted} must have a YAML value, got {shown(text)}: {error}") from None
    for depth, parent in enumerate(parents, 1):
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            above = ".".join(parents[:depth])
            raise UserError(f"{dotted} cannot be set: {above} is {shown(inner)}, not a mapping")
        values = inner
    values[last] = value


def _validate(values: Values) -> tuple[Config | None, list[str]]:
    try:
        # JSON is the strict form in which a list may stand for a tuple and text for a path.
        return Config.model_validate_json(json.dumps(values), strict=True), []
    except ValidationError as error:
        return None, list(_problem_lines(error, values))


def _problem_lines(error: ValidationError, values: Values) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        place = _place(problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "value_error" or not place:
            yield message
        elif problem["type"] == "extra_forbidden":
            yield _unknown_key_line(place, values)
        else:
            yield _wrong_value_line(place, values)


def _place(location: Place) -> Place:
    """Section, number where there are several, and key.

    What comes behind names list items and branches of a union.
    """
    place = tuple(part for part in location if part not in (ONE, SEVERAL))
    return place[: 3 if place[1:] and isinstance(place[1], int) else 2]


def _wrong_value_line(place: Place, values: Values) -> str:
    section, key = place[0], _key(place)
    rule = "a section, a mapping of its keys"
    if key in fields():
        rule = allowed(fields()[key])
    elif len(place) == 1 and section in sections() and may_be_several(str(section)):
        rule += ", or a list of such"
    return f"{_dotted(place)} must be {rule}, got {shown(_value(place, values))}"


def _unknown_key_line(place: Place, values: Values) -> str:
    section = sections().get(str(place[0])) if len(place) > 1 else None
    owner, known = (place[0], section["properties"]) if section else ("a configuration", sections())
    near = _nearest(_key(place), list(known) if not section else [f"{owner}.{k}" for k in known])
    hint = f"did you mean {near}? " if near else ""
    got = shown(_value(place, values))
    return f"{_dotted(place)} is no known key, got {got}; {hint}{owner} takes {', '.join(known)}"


def _key(place: Place) -> str:
    return ".".join(part for part in place if isinstance(part, str))


def _dotted(place: Place) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(map(str, place)))


def _value(place: Place, values: Values) -> Any:
    found: Any = values
    for part in place:
        found = found[part]
    return found


def _nearest(dotted: str, siblings: Sequence[str]) -> str | None:
    """The most similar key: first beside the unknown one, then by its last word, then anywhere."""
    last = dotted.rpartition(".")[2]
    namesakes = [key for key in fields() if key.rpartition(".")[2] == last]
    close = nearest_names(dotted, siblings, limit=1, similarity=0.75)
    return next(iter([*close, *namesakes, *nearest_names(dotted, fields(), limit=1)]), None)


Schema = Mapping[str, Any]

_JSON_KINDS = {"boolean": "true or false", "null": "null", "object": "a mapping", "string": "text"}
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
    return "a path" if field.get("format") == "path" else _JSON_KINDS[field["type"]]


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


_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")


class _PlainLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise _refused(
                    key, "a key must be text, in quotes where it reads as something else"
                )
            if key.value in seen:
                raise _refused(key, f"key {key.value} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KINDS
} | {f"{_TAG}timestamp": yaml.SafeLoader.construct_yaml_str}


def read_yaml(text: str) -> Any:
    """The one document in `text`, as dicts with text keys, lists, text, numbers, booleans and None.

    Raises:
        ValueError: If it is not such a document: one line that says what and where.
    """
    try:
        data = yaml.load(text, _PlainLoader)  # noqa: S506 - is a SafeLoader
        return json.loads(json.dumps(data, ensure_ascii=False).encode())
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = f" (line {where.line + 1}, column {where.column + 1})" if where else ""
        raise ValueError(f"{error.problem}{place}") from None
    except (yaml.YAMLError, RecursionError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
