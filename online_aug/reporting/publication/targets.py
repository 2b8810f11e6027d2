"""The places that a finished run is published to: a folder, or a repository of the hub."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from online_aug.classifier.class_names import MODEL_FILE
from online_aug.classifier.hub_format import HUB_CONFIG_FILE, check_hub_folder
from online_aug.errors import UserError, first_line
from online_aug.files import check_folder
from online_aug.reporting.publication.model_card import CARD_FILE

PUBLISHED = (MODEL_FILE, HUB_CONFIG_FILE, CARD_FILE)
"""What is published of a run."""
HUB = "hf://"


def publish(run: Path, target: str, *, is_private: bool = False) -> str:
    """Publish a finished run.

    Args:
        run: The run directory.
        target: A folder, or `hf://USER/NAME`.
        is_private: Whether a new repository can be seen by its owner alone.

    Returns:
        The place, for a person to open.

    Raises:
        UserError: If the run has not finished, or the target cannot be written.
    """
    check_hub_folder(run)
    if not (run / CARD_FILE).is_file():
        raise UserError(f"RUN must be a finished run, {run} has no {CARD_FILE}")
    if target.startswith(HUB):
        return _push(run, target.removeprefix(HUB), is_private)
    return str(_copy(run, Path(target)))


def _copy(run: Path, folder: Path) -> Path:
    check_folder(folder, "--to")
    _check_free(run, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PUBLISHED:
            temporary = folder / f".{name}.new"
            shutil.copyfile(run / name, temporary)
            temporary.replace(folder / name)
    except OSError as error:
        raise UserError(
            f"--to must be a folder that can be written, got {folder}: {error.strerror}"
        ) from None
    return folder


def _check_free(run: Path, folder: Path) -> None:
    """Refuse a folder in which a file of somebody else would be replaced."""
    if folder.exists() and folder.samefile(run):
        raise UserError(f"--to must be another folder than RUN, got {folder} for both")
    there = [name for name in PUBLISHED if (folder / name).exists()]
    if there and len(there) < len(PUBLISHED):
        raise UserError(
            f"--to must be a new folder or one that was published to, {folder} has a {there[0]} of "
            "something else"
        )


def _push(run: Path, repository: str, is_private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if repository.count("/") != 1:
        raise UserError(f"--to must be {HUB}USER/NAME, got {HUB}{repository}")
    if get_token() is None:
        raise UserError(
            f"--to {HUB}{repository} needs a login: hf auth login, or set HF_TOKEN to a token that "
            "may write"
        )
    with _refusals(repository):
        api = HfApi()
        url = api.create_repo(repository, private=is_private, exist_ok=True)
        files = [CommitOperationAdd(name, str(run / name)) for name in PUBLISHED]
        api.create_commit(
            repository, files, commit_message=f"{run.absolute().name}, by online-aug publish"
        )
    return str(url)


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """Turn whatever the hub and the way to it refuse into one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"--to must be {HUB}USER/NAME: {first_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = {
            401: "it does not know the token: hf auth login",
            403: "the token may not write there",
        }.get(status, first_line(error))
        raise UserError(
            f"--to must be a repository that can be written, the hub refuses {repository}: {reason}"
        ) from None
    except Exception as error:  # whatever the HTTP client raises without a connection
        raise UserError(
            f"--to must be a repository that can be reached, {repository} is not: "
            f"{first_line(error)}"
        ) from None
