"""A configuration from a YAML file and `key.sub=value` overrides, and back to YAML.

Precedence: default, then the method's presets, then file, then command line. Everything that is
wrong is reported at once, one line each, before anything is started or written.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from online_aug.config import Config
from online_aug.config_method import ONE, SEVERAL
from online_aug.config_presets import with_presets
from online_aug.config_schema import allowed, fields, may_be_several, sections, shown
from online_aug.errors import UserError
from online_aug.yaml_text import read_yaml

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
    close = difflib.get_close_matches(dotted, siblings, n=1, cutoff=0.75)
    return next(iter([*close, *namesakes, *difflib.get_close_matches(dotted, fields(), n=1)]), None)
