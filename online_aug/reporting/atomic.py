"""Files that are either the old ones or the new ones, never half of each."""

import os
from pathlib import Path


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
