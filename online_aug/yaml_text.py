"""YAML as plain data: what JSON can hold, no key twice, no object tags, no dates."""

import json
from collections.abc import Hashable
from typing import Any

import yaml

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
