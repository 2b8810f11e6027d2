"""The trackers that `run.trackers` can name: how each is checked, opened, continued and fed.

accelerate has a class for each; here is what these classes leave to their caller. A tracker's own
library is imported when it is used.
"""

import json
import netrc
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8

from online_aug.errors import first_line
from online_aug.files import check_folder

PROJECT = "online-aug"
"""Project of the runs, unless the tracker's own environment variable names another."""
_SHOWN_LETTERS = 200
Image = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The run that a tracker follows."""

    name: str
    folder: Path
    """The run directory."""
    first_step: int = 0
    """Optimizer steps before those that are logged from now on."""


class Library(ABC):
    """A tracker; this class has what most of them share."""

    package: ClassVar[str]
    """Name to import and to install."""
    starts_first = True
    """Whether it is opened before training starts, because it may refuse."""

    def check(self) -> str | None:
        """Return why it cannot be used, with the way out; None if it can."""
        if find_spec(self.package) is None:
            return f"{self.package} is not installed: pip install {self.package}"
        return self.check_login()

    def check_login(self) -> str | None:
        """Return why nothing can be sent, with the way out; None if it can."""
        return None

    @abstractmethod
    def open(self, place: Place, run_id: str | None) -> Any:
        """Return accelerate's tracker, not started; `run_id` is that of an earlier launch."""

    def id_of(self, tracker: Any) -> str | None:
        """Return what `open` needs to go on with the run; None if the name is enough."""
        return None

    def log(self, tracker: Any, values: Mapping[str, float], step: int) -> None:
        """Log figures by their names in `metrics.jsonl`."""
        tracker.log(dict(values), step=step)

    def log_image(self, tracker: Any, name: str, image: Image, step: int) -> None:
        """Log a picture."""
        tracker.log_images({name: [image]}, step=step)

    def log_settings(self, tracker: Any, settings: Mapping[str, Any], *, is_new: bool) -> None:
        """Log the resolved configuration, by dotted keys."""
        tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})


class TensorBoard(Library):
    """Event files in the run directory; tags are grouped by what they are about."""

    package = "tensorboard"
    starts_first = False  # importing it takes seconds, and it refuses nothing

    def __init__(self, tags: Mapping[str, str]) -> None:
        """Take the tag of each figure; others keep their names."""
        self._tags = tags

    def open(self, place: Place, run_id: str | None) -> Any:
        """Return the tracker; events of an earlier launch are hidden from the first step on."""
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker("tensorboard", place.folder, purge_step=place.first_step)

    def log(self, tracker: Any, values: Mapping[str, float], step: int) -> None:
        """Log figures under their tags."""
        tracker.log({self._tag(name): float(v) for name, v in values.items()}, step=step)

    def _tag(self, name: str) -> str:
        head, slash, rest = name.partition("/")
        return self._tags.get(head, head) + slash + rest

    def log_image(self, tracker: Any, name: str, image: Image, step: int) -> None:
        """Log a picture."""
        tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")

    def log_settings(self, tracker: Any, settings: Mapping[str, Any], *, is_new: bool) -> None:
        """Log the configuration as a text: TensorBoard's table of settings needs the results."""
        lines = [f"    {key}: {_plain(value)}" for key, value in settings.items()]
        tracker.log({"config": "\n".join(lines)}, step=0)


_WANDB_OF_OLD = "api.wandb.ai"
"""Host under which keys were kept before the service moved; they still hold."""


class WandB(Library):
    """Weights & Biases; `WANDB_MODE=offline` keeps a run in its directory for `wandb sync`."""

    package = "wandb"

    def check_login(self) -> str | None:
        """Look for a key where wandb does; nothing is asked of a person or of the network."""
        import wandb

        settings = wandb.setup().settings
        wandb.teardown()  # ends the process that setting up has started
        if settings.mode not in ("online", "shared"):
            return None
        host = urlsplit(settings.base_url).hostname or ""
        hosts = (host,) if os.environ.get("WANDB_BASE_URL") else (host, _WANDB_OF_OLD)
        has_key = settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        if has_key or any(map(_has_password, hosts)):
            return None
        return (
            f"wandb knows no key for {host}: wandb login, WANDB_API_KEY, or WANDB_MODE=offline to "
            "send the run later"
        )

    def open(self, place: Place, run_id: str | None) -> Any:
        """Return the tracker; wandb does not capture the console, which is redrawn."""
        import wandb
        from accelerate.tracking import WandBTracker

        return WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.name,
            id=run_id or os.urandom(4).hex(),
            resume="allow",
            dir=str(place.folder),
            settings=wandb.Settings(console="off"),
        )

    def id_of(self, tracker: Any) -> str | None:
        """Return wandb's id of the run."""
        return str(tracker.tracker.id)


def _has_password(host: str) -> bool:
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class MLflow(Library):
    """MLflow, at `MLFLOW_TRACKING_URI`: a folder, a database file or a server."""

    package = "mlflow"

    def check_login(self) -> str | None:
        """Ask a server whether it answers, and MLflow whether it takes a folder; write nothing."""
        import mlflow

        place = urlsplit(uri := mlflow.get_tracking_uri())
        if place.scheme in ("http", "https"):
            return _refusal_of_mlflow(uri, uri)
        if place.scheme not in ("", "file"):
            return None
        check_folder(Path(place.path), "MLFLOW_TRACKING_URI")
        with TemporaryDirectory() as folder:  # looking into a folder of runs would make it
            return _refusal_of_mlflow(uri, f"file:{folder}")

    def open(self, place: Place, run_id: str | None) -> Any:
        """Return the tracker; the project is MLflow's experiment."""
        from accelerate.tracking import MLflowTracker

        return MLflowTracker(PROJECT, run_name=place.name, run_id=run_id)

    def id_of(self, tracker: Any) -> str | None:
        """Return MLflow's id of the run."""
        return str(tracker.tracker.info.run_id)

    def log(self, tracker: Any, values: Mapping[str, float], step: int) -> None:
        """Log figures; letters that MLflow refuses in names become underscores."""
        tracker.log({re.sub(r"[^\w\-. /]", "_", name): v for name, v in values.items()}, step=step)

    def log_image(self, tracker: Any, name: str, image: Image, step: int) -> None:
        """Log a picture as an artefact, for which accelerate's class has no way."""
        import mlflow

        mlflow.log_image(image, artifact_file=f"{name}.png")

    def log_settings(self, tracker: Any, settings: Mapping[str, Any], *, is_new: bool) -> None:
        """Log the configuration of a new run; MLflow lets no parameter change."""
        if is_new:
            super().log_settings(tracker, settings, is_new=is_new)


def _refusal_of_mlflow(uri: str, asked: str) -> str | None:
    """Return why MLflow cannot list the experiments at `asked`; the message names `uri`."""
    import mlflow

    from online_aug.distributed.world import set_environment

    try:
        with set_environment(**_MLFLOW_PATIENCE):
            mlflow.MlflowClient(tracking_uri=asked).search_experiments(max_results=1)
    except Exception as error:  # MlflowException, or whatever the HTTP client raises
        reason = first_line(error)[:_SHOWN_LETTERS]
        return f"mlflow cannot use {uri} ({reason}): set MLFLOW_TRACKING_URI, such as {_DATABASE}"
    return None


_DATABASE = "sqlite:///mlflow.db"
# Without these it tries for minutes.
_MLFLOW_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Trackio(Library):
    """Trackio, on this machine or in a Space of the hub."""

    package = "trackio"

    def check_login(self) -> str | None:
        """A Space needs a login to the hub."""
        from huggingface_hub import get_token

        if os.environ.get("TRACKIO_SPACE_ID") and get_token() is None:
            return "trackio needs a login for TRACKIO_SPACE_ID: hf auth login, or unset it"
        return None

    def open(self, place: Place, run_id: str | None) -> Any:
        """Return the tracker; a run of the same name in the same directory goes on."""
        from accelerate.tracking import TrackioTracker

        return TrackioTracker(PROJECT, name=place.name, resume="allow" if run_id else "never")

    def id_of(self, tracker: Any) -> str | None:
        """Return the name of the run."""
        return str(tracker.tracker.name)

    def log_image(self, tracker: Any, name: str, image: Image, step: int) -> None:
        """Log a picture."""
        import trackio

        tracker.log({name: trackio.Image(image)}, step=step)


def _plain(value: Any) -> Any:
    """Return a value that every tracker can hold; lists become JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
