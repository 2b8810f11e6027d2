"""Output that is there whole or not at all: made beside its place, moved there at the end."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.errors import CacheError

MANIFEST = "export.json"
"""Written last into every exported folder; what `force` may replace is known by it."""


@contextmanager
def staged_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder that becomes `target` if nothing is raised, and is removed otherwise.

    `target` must not exist; with `force` it may be empty or an earlier export, which is replaced.

    Raises:
        CacheError: If `target` may not be replaced, or the disk refuses.
    """
    check_free(target, force=force)
    if force and target.exists() and not _is_replaceable(target):
        raise CacheError(
            f"target must be new, empty or an earlier export to be replaced, got {target} with "
            "other files; name another folder"
        )
    with _staged(target, lambda path: path.mkdir(), _remove_folder, _replace_folder) as staged:
        yield staged


@contextmanager
def staged_file(target: Path, *, force: bool) -> Iterator[Path]:
    """A file's path that becomes `target` if nothing is raised, and is removed otherwise.

    Raises:
        CacheError: If `target` exists and not `force`, or is a folder, or the disk refuses.
    """
    check_free(target, force=force)
    if target.is_dir():
        raise CacheError(f"target must be a file's name, got the folder {target}")
    with _staged(target, lambda path: path.touch(), _remove_file, os.replace) as staged:
        yield staged


def check_free(target: Path, *, force: bool) -> None:
    """Refuse a target that exists.

    Raises:
        CacheError: If it does and not `force`.
    """
    if not force and os.path.lexists(target):
        raise CacheError(f"target must not exist, got {target}; name another or give --force")


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Mark `folder` as a whole export."""
    (folder / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")


@contextmanager
def _staged(
    target: Path,
    make: Callable[[Path], None],
    remove: Callable[[Path], None],
    move: Callable[[Path, Path], None],
) -> Iterator[Path]:
    target = target.absolute()
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        make(staged)
        yield staged
        move(staged, target)
    except OSError as error:
        raise CacheError(
            f"target must be writable with room for all, got {target}: {error.strerror or error}; "
            "nothing was left there"
        ) from error
    finally:
        remove(staged)


def _replace_folder(staged: Path, target: Path) -> None:
    if not os.path.lexists(target):
        staged.rename(target)
        return
    old = staged.with_suffix(".old")
    target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        old.rename(target)
        raise
    _remove_folder(old)


def _is_replaceable(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    return (target / MANIFEST).is_file() or not any(target.iterdir())


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
