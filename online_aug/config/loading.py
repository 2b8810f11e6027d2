"""From a YAML file and `key.sub=value` overrides to a checked configuration, and back to YAML.

Precedence: default, then the method's presets, then file, then command line. All mistakes are
reported at once, one line each, before anything is started or written. The lines, `--help` and the
JSON schema for editors are made from the settings' own declarations.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cache.text import nearest_hint, nearest_names
from online_aug.config import Config
from online_aug.config.schema import (
    allowed,
    fields,
    method_fields,
    methods_with,
    sections,
    shown,
    takes_only_text,
)
from online_aug.documents import MAX_YAML_BYTES, DocumentError, parse_yaml, read_text
from online_aug.errors import UserError
from online_aug.methods.registry import (
    DEFAULT,
    ONE,
    SEVERAL,
    keep_keys_of,
    with_presets,
)

WITH_MOMENTUM = ("sgd", "nesterov", "momentum")
"""Optimizers that take other rates than `adamw` and its kind (docs/LOG.md)."""
Values = dict[str, Any]
Place = tuple[str | int, ...]
"""A place in the values: section, number in a list, key."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration: defaults, presets, the file, the overrides.

    Args:
        path: A YAML file that holds what differs from the defaults; it may be empty.
        overrides: `key.sub=value`, the value read as YAML; of two for one key the last holds.

    Raises:
        UserError: If anything is wrong; the message holds one line for each mistake.
    """
    values, problems = _read_file(path)
    if names := [word for word in overrides if word.startswith("method.name=")]:
        name = names[-1].partition("=")[2]
        values = {**values, "method": keep_keys_of(values.get("method", {}), name)}
    for override in overrides:
        try:
            _apply(values, override)
        except UserError as error:
            problems.append(str(error))
    config, invalid = _validate(_with_usual_rates(with_presets(values)))
    problems.extend(invalid)
    if config is None or problems:
        lines = dict.fromkeys(" ".join(problem.splitlines()) for problem in problems)
        raise UserError("\n".join(lines))
    return config


def _with_usual_rates(values: Values) -> Values:
    """Fill in rate and weight decay by optimizer and start, and what the loss needs."""
    optim, classifier = (values.get(name, {}) for name in ("optim", "classifier"))
    if not (isinstance(optim, dict) and isinstance(classifier, dict)):
        return values  # told when the sections are checked
    is_loaded = bool(classifier.get("pretrained") or classifier.get("checkpoint"))
    is_fine_tuned = is_loaded and classifier.get("head_only") is not True
    usual: Values = {}
    if optim.get("name") in WITH_MOMENTUM:
        usual = {"lr": 0.01 if is_fine_tuned else 0.05, "weight_decay": 5e-4}
    elif is_fine_tuned:
        usual = {"lr": 1e-3}
    if optim.get("loss") == "ldam":
        usual["label_smoothing"] = 0.0
        classifier = {"head": "cosine", **classifier}
        values = {**values, "classifier": classifier}
    return {**values, "optim": {**usual, **optim}}


def changed(config: Config, section: str, **values: Any) -> Config:
    """Return a configuration with some keys of a section changed, checked like any other.

    Raises:
        UserError: If it breaks a rule between keys.
    """
    before = _plain(config)
    found, problems = _validate({**before, section: {**before[section], **values}})
    if found is None:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return found


def resolved_yaml(config: Config) -> str:
    """Write every key with its value as YAML that `load_config` reads back to the same."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def config_digest(config: Config) -> str:
    """Digest all values (BLAKE2b, 32 hexadecimal digits), whatever the order of the file."""
    canonical = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _plain(config: Config) -> Values:
    return config.model_dump(mode="json")


def _read_file(path: Path) -> tuple[Values, list[str]]:
    try:
        text = read_text(path, limit=MAX_YAML_BYTES)
    except DocumentError as error:
        return {}, [f"the first argument must be a YAML file, cannot read {path}: {error}"]
    try:
        values = parse_yaml(text)
    except DocumentError as error:
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
        value = parse_yaml(text)
    except DocumentError as error:
        raise UserError(f"{dotted} must have a YAML value, got {shown(text)}: {error}") from None
    if isinstance(value, bool | int | float) and takes_only_text(fields().get(dotted, {})):
        value = text.strip()  # YAML reads 010 as 8 and `no` as false
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
            yield from message.splitlines()
        elif problem["type"] == "extra_forbidden":
            yield _unknown_key_line(place, values)
        else:
            yield _wrong_value_line(place, values)


def _place(location: Place) -> Place:
    # What comes behind section, number and key names list items and branches of a union.
    place = tuple(part for part in location if part not in (ONE, SEVERAL))
    return place[: 3 if place[1:] and isinstance(place[1], int) else 2]


def _wrong_value_line(place: Place, values: Values) -> str:
    key, known = _key(place), fields()
    if place[0] == "method" and isinstance(place[-1], str) and len(place) > 1:
        taken = method_fields(_method_at(place, values))
        known = {f"method.{name}": field for name, field in taken.items()}
    rule = "a section, a mapping of its keys"
    if key in known:
        rule = allowed(known[key])
    elif place == ("method",):
        rule += ", or a list of such"
    value, way_out = _value(place, values), ""
    if isinstance(value, bool | int | float) and takes_only_text(known.get(key, {})):
        way_out = ", which YAML takes for no text: put it in quotes"
    return f"{_dotted(place)} must be {rule}, got {shown(value)}{way_out}"


def _method_at(place: Place, values: Values) -> str:
    name = _value(place[:-1], values).get("name")
    return name if isinstance(name, str) else DEFAULT


def _unknown_key_line(place: Place, values: Values) -> str:
    got, key = shown(_value(place, values)), _key(place)
    section = str(place[0])
    if len(place) == 1:
        owner, known = "a configuration", list(Config.model_fields)
        near = nearest_names(key, known, limit=1) or _nearest(key, ())
    elif section == "method":
        owner = _method_at(place, values)
        known = list(method_fields(owner))
        if others := methods_with(str(place[-1])):
            return (
                f"{_dotted(place)} is no key of {owner} but of {', '.join(others)}, got {got}; "
                f"{owner} takes {', '.join(known)}"
            )
        near = _nearest(key, [f"method.{name}" for name in known])
    else:
        owner, known = section, list(sections()[section]["properties"])
        near = _nearest(key, [f"{section}.{name}" for name in known])
    hint = f"did you mean {' or '.join(near)}? " if near else ""
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


_OTHER_WORDS = {
    **{"learning_rate": "lr", "wd": "weight_decay", "bs": "batch_size", "batch": "batch_size"},
    **{"num_epochs": "epochs", "n_epochs": "epochs", "num_workers": "workers", "optimizer": "name"},
    **{"img_size": "image_size", "input_size": "image_size", "dataset": "source", "arch": "name"},
    **{"guidance": "guidance_scale", "inference_steps": "num_inference_steps", "lora_rank": "rank"},
}
"""What other programs call a key, and the last word of ours."""


def _nearest(dotted: str, siblings: Iterable[str]) -> list[str]:
    """Return keys that may have been meant: by another word, beside it, its namesakes, anywhere."""
    section, _, last = dotted.rpartition(".")
    word = _OTHER_WORDS.get(last, last)
    if word != last and f"{section}.{word}" in siblings:
        return [f"{section}.{word}"]
    close = nearest_names(dotted, siblings, limit=1, similarity=0.75)
    namesakes = [key for key in fields() if key.rpartition(".")[2] == word]
    return close or namesakes[:_NAMESAKES] or nearest_names(dotted, fields(), limit=1)


_NAMESAKES = 3


RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that come with the package; in a checkout a link to `configs`."""


def recipe_names() -> list[str]:
    """List the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _collected() -> list[str]:
    """List the recipes of the package that lie in folders, such as `diffda/cub_shot5_diff_mix`."""
    return [
        path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*.yaml")
    ]


def find_recipe(given: str) -> Path:
    """Return the path of a recipe that is given as a file or by its name.

    Raises:
        UserError: If it is neither an existing file nor the name of a recipe.
    """
    path = Path(given)
    if path.exists():
        return path
    names = recipe_names()
    if given in names or given in _collected():
        return RECIPES / f"{given}.yaml"
    raise UserError(
        "the first argument must be an existing YAML file or the name of a recipe, "
        f"got {given}{nearest_hint(path.stem, names)}"
    )
