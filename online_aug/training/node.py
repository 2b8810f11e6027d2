"""The place of this machine in a run on several, as the process that started the run says it."""

import json
import os
from dataclasses import asdict, dataclass

NODE = "ONLINE_AUG_NODE"
"""Set in what a run with a hostfile starts on each machine, and in the ranks below it."""


@dataclass(frozen=True)
class Node:
    """One of the machines, and where all ranks meet."""

    number: int
    """From 0, in the order of the hostfile."""
    slots: tuple[int, ...]
    """Ranks on each machine."""
    address: str
    """Of the first machine, as the others see it."""
    port: int

    @property
    def ranks(self) -> int:
        """On this machine."""
        return self.slots[self.number]

    def to_text(self) -> str:
        """As the environment holds it."""
        return json.dumps(asdict(self), separators=(",", ":"))


def this_node() -> Node | None:
    """The place of this machine; None in a run that no hostfile spread over several."""
    if NODE not in os.environ:
        return None
    said = json.loads(os.environ[NODE])
    return Node(**{**said, "slots": tuple(said["slots"])})
