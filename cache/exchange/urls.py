"""URLs as places of exports and sources of imports, by the file systems that fsspec knows."""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from cache.errors import CacheError
from cache.exchange.exporting import MANIFEST, not_free, not_replaceable
from cache.exchange.hub import HubTarget
from cache.exchange.image_files import IMAGE_SUFFIXES, path_inside
from cache.text import byte_size, printable

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)
_LOCAL = re.compile(r"(file|local)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/@]*@")
_READ_SUFFIXES = IMAGE_SUFFIXES | {".csv", ".jsonl", ".tar"}
"""Suffixes of the files that an import reads; no others are fetched."""
_FILES_AT_ONCE = 256
_REASON_CHARACTERS = 300


Target: TypeAlias = "FsspecTarget | HubTarget"


def place(text: str) -> Path | str:
    """Return a path, for a `file://` URL too; any other URL as it is."""
    if local := _LOCAL.match(text):
        return Path(text[local.end() :])
    return text if _URL.match(text) else Path(text)


def open_target(url: str, *, is_file: bool, force: bool) -> Target:
    """Find out whether an export can be written to a URL.

    Args:
        url: Where to write.
        is_file: Whether it is to be one file, else a folder.
        force: Replace an earlier export.

    Raises:
        CacheError: If not.
    """
    with _told("target must be writable", url):
        kind = HubTarget if url.lower().startswith("hf://") else FsspecTarget
        return kind(url, is_file=is_file, force=force)


def upload(
    target: Target, url: str, staged: Path, on_progress: Callable[[int, int | None], None]
) -> None:
    """Write a folder or file to the target that was opened for a URL.

    Raises:
        CacheError: If it cannot be written; then nothing of it is there.
    """
    with _told("target must be writable with room for all", url):
        target.upload(staged, on_progress)


def download(url: str, folder: Path, on_progress: Callable[[int, int | None], None]) -> Path:
    """Copy what an import reads of a URL into an empty folder; return the folder or the shard.

    Raises:
        CacheError: If the URL cannot be read or the disk has no room.
    """
    with _told("source must be readable", url):
        files, root = _opened(url, "source")
        if not files.exists(root):
            raise CacheError(
                "source must be a folder or a tar shard, got "
                f"{without_password(url)} which does not exist"
            )
        return _copy(files, root, folder, on_progress)


def without_password(url: str) -> str:
    """Return a URL without user and password, to be printed."""
    return _PASSWORD.sub("", url)


class FsspecTarget:
    """A place of one of fsspec's file systems that an export may be written to."""

    def __init__(self, url: str, *, is_file: bool, force: bool) -> None:
        """Look what is there, and write a probe and remove it.

        Raises:
            CacheError: If something is there that is not to be replaced.
        """
        self._url, self._is_file = url, is_file
        self._files, self._root = _opened(url, "target")
        self._has_folders = not getattr(self._files, "async_impl", False)  # object stores have none
        self._old = self._what_is_there(force)
        probe = f"{self._root}.probe" if is_file else f"{self._root}/probe"
        try:
            self._make_parent(probe)
            self._files.pipe_file(probe, b"online-aug looks whether this can be written")
        finally:
            self._remove([probe])

    def upload(self, staged: Path, on_progress: Callable[[int, int | None], None]) -> None:
        """Write a folder or file, its manifest last, then remove what is left of an earlier one."""
        pairs = self._pairs(staged)
        try:
            for start in range(0, len(pairs), _FILES_AT_ONCE):
                on_progress(start, len(pairs))
                self._put(pairs[start : start + _FILES_AT_ONCE])
        except BaseException:
            self._remove({there for _, there in pairs} - self._old)
            raise
        self._remove(self._old - {there for _, there in pairs})

    def _what_is_there(self, force: bool) -> set[str]:
        shown = without_password(self._url)
        if not self._files.exists(self._root):
            return set()
        if not force:
            raise not_free(shown)
        if self._files.isfile(self._root) != self._is_file:
            raise not_replaceable(shown)
        old = {self._root} if self._is_file else set(self._files.find(self._root))
        if old and not self._is_file and f"{self._root}/{MANIFEST}" not in old:
            raise not_replaceable(shown)
        return old

    def _pairs(self, staged: Path) -> list[tuple[str, str]]:
        if self._is_file:
            return [(str(staged), self._root)]
        names = sorted(p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file())
        names.sort(key=lambda name: ("/" not in name, name == MANIFEST))  # the manifest is last
        return [(str(staged / name), f"{self._root}/{name}") for name in names]

    def _put(self, pairs: Sequence[tuple[str, str]]) -> None:
        for _, there in pairs:
            self._make_parent(there)
        self._files.put([here for here, _ in pairs], [there for _, there in pairs])

    def _make_parent(self, name: str) -> None:
        if self._has_folders:
            self._files.makedirs(name.rpartition("/")[0], exist_ok=True)

    def _remove(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            with suppress(Exception):  # whatever a file system raises: the first error counts
                self._files.rm_file(name)
            if self._has_folders and not self._is_file:
                inside = name.removeprefix(self._root).strip("/")
                folders |= {f"{self._root}/{folder}" for folder in PurePosixPath(inside).parents}
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(Exception):
                self._files.rmdir(folder.removesuffix("/."))


def _copy(
    files: Any, root: str, folder: Path, on_progress: Callable[[int, int | None], None]
) -> Path:
    is_file = files.isfile(root)
    sizes = {root: files.size(root)} if is_file else files.find(root, detail=True)
    base = root.rpartition("/")[0] if is_file else root
    pairs = [
        (name, str(path_inside(folder, name.removeprefix(base).lstrip("/"))))
        for name in sizes
        if PurePosixPath(name).suffix.lower() in _READ_SUFFIXES
    ]
    _check_room(folder, sum(_size(sizes[name]) for name, _ in pairs))
    for start in range(0, len(pairs), _FILES_AT_ONCE):
        part = pairs[start : start + _FILES_AT_ONCE]
        on_progress(start, len(pairs))
        for _, here in part:
            Path(here).parent.mkdir(parents=True, exist_ok=True)
        files.get([there for there, _ in part], [here for _, here in part])
    return Path(pairs[0][1]) if is_file and pairs else folder


def _size(found: Any) -> int:
    size = found.get("size") if isinstance(found, dict) else found
    return size if isinstance(size, int) else 0


def _check_room(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise CacheError(
            f"{folder.parent} must have room for {byte_size(size_bytes)}, got {byte_size(free)}; "
            "set TMPDIR to a larger disk"
        )


def _opened(url: str, role: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise CacheError(f"a {role} that is a URL needs fsspec; pip install fsspec") from error
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        raise CacheError(
            f"{role} must be a URL whose package is installed, got {without_password(url)}: {error}"
        ) from error
    except ValueError as error:
        raise CacheError(
            f"{role} must be a path or a URL that fsspec knows, as s3://BUCKET/NAME, got "
            f"{without_password(url)}: {error}"
        ) from error
    root = root.rstrip("/")
    if not root:
        raise CacheError(f"{role} must name a folder or file, got {without_password(url)}")
    return files, root


@contextmanager
def _told(rule: str, url: str) -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except Exception as error:  # a hundred file systems raise a hundred types
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = printable(lines[0] if lines else type(error).__name__)[:_REASON_CHARACTERS]
        raise CacheError(
            f"{rule}, got {without_password(url)}: {reason}; check the address and your login"
        ) from error
