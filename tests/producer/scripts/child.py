"""A generation process without a model: the real pipe, and a behaviour chosen by name."""

import json
import os
import sys
import time
from pathlib import Path

from online_aug.producer import messages
from online_aug.producer.messages import Failed, Status, TrainerPipe, tie_to_parent

messages.ALIVE_EVERY_S = 0.2


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
    pipe = TrainerPipe()
    announce(folder)
    BEHAVIOURS[behaviour](pipe, folder)


def announce(folder):
    """Write the id and the environment of this process for the test to read."""
    number = len(list(folder.glob("child*.json")))
    partial = folder / f"partial{number}"
    partial.write_text(json.dumps({"pid": os.getpid(), "environment": dict(os.environ)}))
    partial.rename(folder / f"child{number}.json")


def serve(pipe, folder):
    pipe.tell(Status(state="generating", generated=1))
    print("a library says something")  # noqa: T201
    while not pipe.is_stopping:
        time.sleep(0.01)
    pipe.tell(Status(state="finished", generated=1))


def echo(pipe, folder):
    while not pipe.is_stopping:
        pipe.tell(Status(state="generating", generated=pipe.served))
        time.sleep(0.01)


def note(what):
    """Return a behaviour that leaves a file named after what was heard, and by which process."""

    def behave(pipe, folder):
        while not pipe.is_stopping:
            heard = getattr(pipe, what)
            if heard is not None:
                (folder / f"{heard}-{os.getpid()}").touch()
            time.sleep(0.01)

    return behave


def begin(pipe, folder):
    pipe.tell(Status(state="waiting"))
    is_wanted = pipe.wait_to_begin()
    (folder / f"{'begun' if is_wanted else 'stopped'}-{os.getpid()}").touch()
    serve(pipe, folder)


def finish(pipe, folder):
    pipe.tell(Status(state="finished", generated=7, reused=2))


def fill(pipe, folder):
    pipe.tell(Status(state="full", generated=3, note="the disk is full"))


def fail_for_good(pipe, folder):
    pipe.tell(Failed(reason="generation.model must be a model, got a stone", is_final=True))
    sys.exit(2)


def fail(pipe, folder):
    pipe.tell(Status(state="generating", generated=5, rejected=1))
    pipe.tell(Failed(reason="OutOfMemoryError: no room", is_final=False))
    sys.exit(1)


def fail_in_vain(pipe, folder):
    pipe.tell(Failed(reason="OutOfMemoryError: no room", is_final=False))
    sys.exit(1)


def fail_once(pipe, folder):
    if (folder / "child1.json").exists():
        serve(pipe, folder)
    else:
        fail(pipe, folder)


BEHAVIOURS = {
    "serve": serve,
    "echo": echo,
    "note maps": note("saliency_version"),
    "note losses": note("class_losses"),
    "begin": begin,
    "finish": finish,
    "fill": fill,
    "fail for good": fail_for_good,
    "fail": fail,
    "fail in vain": fail_in_vain,
    "fail once": fail_once,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
