"""Exports to data sets of the Hugging Face Hub, in one commit: all of it is there or nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache.errors import CacheError
from cache.exchange.exporting import MANIFEST, not_free, not_replaceable

_HUB_URL = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>(?!\.\.?(/|$))[^/]+(/(?!\.\.?(/|$))[^/]+)*))?/?",
    re.IGNORECASE,
)
_KEPT = frozenset({".gitattributes", "README.md"})
"""Files of a data set that are no part of an export and may be there before it."""
_REPLACED = ["*.png", "*.jpg", "*.webp", "*.tar", "*.csv", "*.jsonl", "*.parquet", "*.txt"]
"""Files of an earlier export, by their names."""


class HubTarget:
    """A data set of the Hub, or a folder or file in it, that an export may be written to."""

    def __init__(self, url: str, *, is_file: bool, force: bool) -> None:
        """Log in, and look what is there.

        Raises:
            CacheError: If the URL is not that of a data set, or something is there.
        """
        parts = _HUB_URL.fullmatch(url)
        if parts is None or (is_file and not parts["path"]):
            file = "/FILE" if is_file else "[/FOLDER]"
            raise CacheError(f"target must be hf://datasets/USER/NAME{file}, got {url}")
        self._where = {
            "repo_id": parts["repo"],
            "repo_type": "dataset",
            "revision": parts["revision"],
        }
        self._path, self._is_file = parts["path"] or "", is_file
        self._api, self._is_replaced = _logged_in(url), False
        self._is_new = not self._api.repo_exists(self._where["repo_id"], repo_type="dataset")
        if not self._is_new:
            self._check_free(url, force)

    def upload(self, staged: Path, on_progress: Callable[[int, int | None], None]) -> None:
        """Write a folder or file in one commit, to a new private data set if there is none."""
        if self._is_new:
            self._api.create_repo(self._where["repo_id"], repo_type="dataset", private=True)
        message = "Export of generated images by online-aug"
        if self._is_file:
            self._api.upload_file(
                path_or_fileobj=staged,
                path_in_repo=self._path,
                commit_message=message,
                **self._where,
            )
        else:
            self._api.upload_folder(
                folder_path=staged,
                path_in_repo=self._path or None,
                commit_message=message,
                delete_patterns=_REPLACED if self._is_replaced else None,
                **self._where,
            )

    def _check_free(self, url: str, force: bool) -> None:
        inside = f"{self._path}/" if self._path else ""
        listed = self._api.list_repo_files(**self._where)
        there = {name for name in listed if name == self._path or name.startswith(inside)} - _KEPT
        if there and not force:
            raise not_free(url)
        is_export = there == {self._path} if self._is_file else f"{inside}{MANIFEST}" in there
        if there and not is_export:
            raise not_replaceable(url)
        self._is_replaced = bool(there)


def _logged_in(url: str) -> Any:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError
    except ImportError as error:
        raise CacheError(f"target {url} needs huggingface_hub; pip install it") from error
    api = HfApi()
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise CacheError(
            f"target {url} needs a login that may write: run hf auth login, or set HF_TOKEN"
        ) from error
    return api
