"""Text, JSON and YAML from files, read within bounds: a hostile document is one line, no traceback.

Every JSON and YAML file that a person or another program may have written is read here. Bounded are
the size of the file, how deep its values lie in one another, what its aliases stand for, and the
digits of its numbers. Pipes, sockets and devices are not read.
"""

import errno
import json
import os
import stat
from collections.abc import Hashable
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from online_aug.errors import one_line

MAX_BYTES = 16 * 2**20
"""Largest JSON or text file that is read unless a caller allows more."""
MAX_YAML_BYTES = 2**20
"""Largest YAML file: PyYAML reads some hundred kilobytes a second."""
MAX_DEPTH = 50
"""Values that may lie in one another."""
MAX_VALUES = 50_000
"""Values of a YAML document with every alias written out."""
MAX_NUMBER_LETTERS = 100

_NO_FILES_OF_OURS = ("/dev/fd/", "/dev/stdin", "/proc/")
_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")


class DocumentError(ValueError):
    """A document cannot be read; the text says why in half a sentence, without the file's name."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; links are followed.

    Raises:
        OSError: If it cannot be opened, or is a pipe, socket or device, which could make the reader
            wait for ever.
    """
    # Without O_NONBLOCK opening a pipe waits for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Read a regular file of text in UTF-8.

    A path that a shell made for one of its own pipes (`/dev/stdin`, `/dev/fd/63`) is read as well.

    Args:
        path: The file.
        limit: Largest size, bytes.

    Raises:
        DocumentError: If it cannot be read, is larger, or is not UTF-8.
    """
    try:
        is_pipe_of_shell = str(path).startswith(_NO_FILES_OF_OURS)
        with path.open("rb") if is_pipe_of_shell else open_regular(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise DocumentError(getattr(error, "strerror", None) or one_line(error)) from error
    if len(content) > limit:
        raise DocumentError(f"it is larger than {limit} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not text in UTF-8 (byte {error.start})") from None


def read_json(path: Path, *, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        DocumentError: As `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit=limit))


def read_object(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        DocumentError: As `read_json`, or if it holds something else.
    """
    found = read_json(path, limit=limit)
    if not isinstance(found, dict):
        raise DocumentError(f"it must hold a JSON object, got {_kind(found)}")
    return found


def parse_json(text: str) -> Any:
    """Parse one JSON document.

    Raises:
        DocumentError: If it is malformed, nested too deeply, or has a number of too many digits.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DocumentError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise DocumentError(_too_deep()) from None
    except ValueError:
        raise DocumentError("it has a number of too many digits") from None
    if _is_deeper(found, MAX_DEPTH):
        raise DocumentError(_too_deep())
    return found


def parse_yaml(text: str) -> Any:
    """Parse one YAML document as plain data: what JSON can hold, no key twice, no tags, no dates.

    Raises:
        DocumentError: If it is not such a document or exceeds a bound; says the place.
    """
    try:
        data = yaml.load(text, _PlainLoader)  # noqa: S506 - is a SafeLoader
        found = json.loads(json.dumps(data, ensure_ascii=False).encode())
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = f" (line {where.line + 1}, column {where.column + 1})" if where else ""
        raise DocumentError(f"{_short(error.problem)}{place}") from None
    except RecursionError:
        raise DocumentError(_too_deep()) from None
    except (yaml.YAMLError, TypeError, OverflowError, ValueError) as error:
        raise DocumentError(_short(one_line(error))) from None
    if _is_deeper(found, MAX_DEPTH):
        raise DocumentError(_too_deep())
    return found


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data; composing counts depth, and values with aliases written out."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth, self._composed = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth, self._composed = self._depth + 1, self._composed + 1
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None  # composing raises instead
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise _refused(node, "an alias must not stand for what it lies in")
        if not is_alias:
            self._sizes[id(node)] = self._size(node)
        if max(self._composed, self._sizes[id(node)]) > MAX_VALUES:
            raise _refused(node, f"it stands for more than {MAX_VALUES} values")
        if self._depth >= MAX_DEPTH:
            raise _refused(node, _too_deep())
        return node

    def _size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self._sizes[id(part)] for pair in node.value for part in pair)
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self._sizes[id(part)] for part in node.value)
        return 1 + len(node.value) // 100  # long text counts for what it would fill

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

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        _check_digits(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        _check_digits(node)
        return super().construct_yaml_float(node)


_PlainLoader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KINDS
} | {
    f"{_TAG}timestamp": yaml.SafeLoader.construct_yaml_str,
    f"{_TAG}int": _PlainLoader.construct_yaml_int,
    f"{_TAG}float": _PlainLoader.construct_yaml_float,
}


def _check_digits(node: yaml.ScalarNode) -> None:
    if len(node.value) > MAX_NUMBER_LETTERS:  # reading 1:59:59:... takes quadratic time
        raise _refused(node, f"a number must have at most {MAX_NUMBER_LETTERS} letters")


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _short(text: str | None) -> str:
    return (text or "it is not YAML")[:200]


def _too_deep() -> str:
    return f"its values lie in one another more than {MAX_DEPTH} deep"


def _is_deeper(value: Any, left: int) -> bool:
    level = [value]
    for _ in range(left + 1):
        lists = [each for each in level if isinstance(each, list)]
        mappings = [each.values() for each in level if isinstance(each, dict)]
        level = [inner for group in (*lists, *mappings) for inner in group]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
