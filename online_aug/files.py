"""Small files of ours: replaced as a whole, made by one process at a time, records as JSON."""

import json
import math
import os
import tempfile
from collections.abc import Hashable
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from online_aug.documents import DocumentError, parse_json
from online_aug.errors import UserError

Record = TypeVar("Record")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that a crash at any moment leaves the old content or the new one.

    The temporary file lies beside it, under a name with a dot and the process id.

    Raises:
        OSError: If the folder cannot be written; the file is then untouched.
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


def check_folder(path: Path, name: str) -> None:
    """Refuse a folder that is none, or cannot be made or written; make nothing.

    Args:
        path: The folder.
        name: The option or key that names it, for the message.

    Raises:
        UserError: If it, or the nearest folder above it that exists, is a file or read-only.
    """
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return
    reason = "is read-only" if nearest.is_dir() else "is a file"
    raise UserError(f"{name} must be a folder that can be written, got {path}: {nearest} {reason}")


def lock_of_user(name: str) -> Path:
    """Return the path of a lock file that the processes of this user on this machine share."""
    return Path(tempfile.gettempdir()) / f"online_aug-{os.getuid()}-{name}.lock"


def alone(lock: Path, patience_s: float = -1.0) -> FileLock:
    """Return a lock to enter; the kernel frees it however its holder ends.

    Args:
        lock: The lock file; it and its folder are made if they are missing.
        patience_s: How long to wait for another holder; negative waits for ever.

    Raises:
        OSError: If the folder cannot be written. Entering raises `filelock.Timeout` if another
            process still holds the lock after `patience_s`.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(lock, timeout=patience_s)


def to_json(record: Any, indent: int | None = None) -> str:
    """Write the fields of a dataclass as one JSON object.

    A number that is not finite (the loss of a run that diverged) becomes null: JSON has no NaN.
    """
    values = {name: _finite_or_none(value) for name, value in asdict(record).items()}
    return json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)


def from_json(cls: type[Record], text: str, where: str) -> Record:
    """Read a dataclass that `to_json` wrote; null in a float field is NaN.

    Args:
        cls: The dataclass.
        text: One JSON object with exactly the fields of `cls`, each of its type.
        where: The place that an error names, such as `metrics.jsonl line 3`.

    Raises:
        UserError: If the text is not such an object.
    """
    try:
        values = parse_json(text)
    except DocumentError as error:
        raise UserError(f"{where} must be a JSON object: {error}") from None
    known = json.dumps(_known_fields(cls, values, where))
    try:
        record: Record = _checker(cast(Hashable, cls)).validate_json(known, strict=True)
        return record
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{where} must hold the fields of this version, {place} does not: {first['msg']}"
        ) from None


@cache
def _checker(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


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
