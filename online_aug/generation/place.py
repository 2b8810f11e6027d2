"""Where one generation process computes, among those of its run."""

from pydantic import BaseModel, ConfigDict


class Place(BaseModel):
    """What its command line says, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    """As the process sees it: a GPU is its only one."""
    threads: int
    number: int = 0
    """Among the processes of this run, from 0."""
    count: int = 1
    share: float = 0.0
    """Of the device's time, left to the classifier that shares it."""
