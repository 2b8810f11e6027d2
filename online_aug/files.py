"""Flat dataclasses as JSON, strict in both directions.

One process at a time.

Files that are either the old ones or the new ones, never half of each.
"""

import errno
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, TypeVar

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


_LOOK_EVERY_S = 0.05


def lock_of_user(name: str) -> Path:
    """The lock file of this name among the processes of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"online_aug-{os.getuid()}-{name}.lock"


@contextmanager
def alone(lock: Path, patience_s: float = math.inf) -> Iterator[None]:
    """Hold a lock file; others wait, and the kernel frees it however this process ends.

    Args:
        lock: The file, made where it is missing.
        patience_s: How long to wait for another holder.

    Raises:
        BlockingIOError: If another still holds it by then.
        OSError: If the file or its folder cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience_s
    with lock.open("w") as file:
        while not _took(file, waits=patience_s == math.inf):
            if time.monotonic() >= until:
                raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(lock))
            time.sleep(_LOOK_EVERY_S)
        yield


def _took(file: IO[str], *, waits: bool) -> bool:
    """Whether the lock is now this process'."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` so that a crash at any moment leaves a whole file.

    The temporary file starts with a dot, lies beside `path` and carries the process id.

    Raises:
        OSError: If the folder cannot be written; `path` is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
