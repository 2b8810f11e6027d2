"""The child's side of the pipe, in real processes; `test_supervisor.py` has the two together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from online_aug.producer.messages import Status, Stop, read_from_generator

ROOT = Path(__file__).parents[2]
CHILD = [sys.executable, str(Path(__file__).parent / "scripts" / "child.py")]
PATIENCE_S = 30


def start(behaviour, folder, **environment):
    return subprocess.Popen(
        [*CHILD, behaviour, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture
def serving(tmp_path):
    with start("serve", tmp_path) as process:
        assert read_from_generator(process.stdout.readline()).state == "generating"
        yield process
        process.kill()


def test_a_stop_lets_it_finish_and_nothing_but_messages_is_on_the_pipe(serving):
    out, err = serving.communicate(Stop().model_dump_json().encode() + b"\n", PATIENCE_S)
    assert read_from_generator(out.splitlines()[-1]) == Status(state="finished", generated=1)
    assert (serving.returncode, err) == (0, b"a library says something\n")


def test_a_message_may_come_in_pieces(serving):
    message = Stop().model_dump_json().encode() + b"\n"
    for byte in message:
        serving.stdin.write(bytes([byte]))
        serving.stdin.flush()
    assert serving.wait(PATIENCE_S) == 0


def test_it_ends_when_the_pipe_is_closed(serving):
    serving.stdin.close()
    assert serving.wait(5) == 1


def test_it_ends_when_nobody_reads_what_it_tells(tmp_path):
    with start("echo", tmp_path) as process:
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 1


def test_it_does_not_start_for_a_parent_that_is_gone(tmp_path):
    with start("tied to the parent", tmp_path, ONLINE_AUG_PARENT="1") as process:
        assert process.wait(PATIENCE_S) == 1
    assert list(tmp_path.iterdir()) == []
