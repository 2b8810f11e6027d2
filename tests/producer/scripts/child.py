"""A generation process without a model: the real pipe, and a behaviour by name."""

import json
import os
import sys
import time
from pathlib import Path

from online_aug.producer.messages import Failed, Status, TrainerPipe, tie_to_parent


def main(behaviour, folder):
    if behaviour == "tied to the parent":  # the kernel's signal alone, nobody reads the pipe
        tie_to_parent()
        announce(folder)
        time.sleep(60)
    if behaviour == "deaf":
        announce(folder)
        time.sleep(60)
    if behaviour == "crash":
        announce(folder)
        sys.exit(3)
    lifeline = TrainerPipe()
    announce(folder)
    BEHAVIOURS[behaviour](lifeline, folder)


def announce(folder):
    """Number of this process and its environment, for the test to read."""
    number = len(list(folder.glob("child*.json")))
    partial = folder / f"partial{number}"
    partial.write_text(json.dumps({"pid": os.getpid(), "environment": dict(os.environ)}))
    partial.rename(folder / f"child{number}.json")


def serve(lifeline, folder):
    lifeline.tell(Status(state="generating", generated=1))
    print("a library says something")  # noqa: T201
    while not lifeline.is_stopping:
        time.sleep(0.01)
    lifeline.tell(Status(state="finished", generated=1))


def echo(lifeline, folder):
    while not lifeline.is_stopping:
        lifeline.tell(Status(state="generating", generated=lifeline.served))
        time.sleep(0.01)


def note(what):
    """Leave a file named after what was heard and by whom."""

    def behave(lifeline, folder):
        while not lifeline.is_stopping:
            heard = getattr(lifeline, what)
            if heard is not None:
                (folder / f"{heard}-{os.getpid()}").touch()
            time.sleep(0.01)

    return behave


def finish(lifeline, folder):
    lifeline.tell(Status(state="finished", generated=7, reused=2))


def fill(lifeline, folder):
    lifeline.tell(Status(state="full", generated=3, note="the disk is full"))


def fail_for_good(lifeline, folder):
    lifeline.tell(Failed(reason="generation.model must be a model, got a stone", is_final=True))
    sys.exit(2)


def fail(lifeline, folder):
    lifeline.tell(Status(state="generating", generated=5, rejected=1))
    lifeline.tell(Failed(reason="OutOfMemoryError: no room", is_final=False))
    sys.exit(1)


def fail_in_vain(lifeline, folder):
    lifeline.tell(Failed(reason="OutOfMemoryError: no room", is_final=False))
    sys.exit(1)


def fail_once(lifeline, folder):
    if (folder / "child1.json").exists():
        serve(lifeline, folder)
    else:
        fail(lifeline, folder)


BEHAVIOURS = {
    "serve": serve,
    "echo": echo,
    "note maps": note("saliency_version"),
    "note losses": note("class_losses"),
    "finish": finish,
    "fill": fill,
    "fail for good": fail_for_good,
    "fail": fail,
    "fail in vain": fail_in_vain,
    "fail once": fail_once,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
