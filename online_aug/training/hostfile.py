"""DeepSpeed's hostfile: the machines of a run, and how many ranks train on each."""

import re
from pathlib import Path

from online_aug.errors import UserError

_LINE = re.compile(r"(?P<name>\w[\w.@:-]*)\s+slots=(?P<slots>[1-9]\d{0,5})(\s+#.*)?")


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by machine, in the order of the file, which is that of the nodes.

    Raises:
        UserError: If the file cannot be read, a line is no machine, or a machine is named twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"devices.hostfile must be a readable hostfile: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None or found["name"] in hosts:
            raise UserError(
                "devices.hostfile must name each machine once, in a line such as node-a slots=2, "
                f"got {text!r} in line {number} of {path}"
            )
        hosts[found["name"]] = int(found["slots"])
    if not hosts:
        raise UserError(
            "devices.hostfile must name at least one machine, in a line such as node-a slots=2, "
            f"got none in {path}"
        )
    return hosts
