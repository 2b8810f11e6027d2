"""Messages as lines, and the child's end of the pipe in real processes.

`test_supervisor.py` has both ends together.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from online_aug.producer.messages import (
    Begin,
    ClassLosses,
    Failed,
    NewMaps,
    ServedCount,
    Status,
    Stop,
    read_from_generator,
    read_from_trainer,
    to_line,
)


@pytest.mark.parametrize(
    "message",
    [
        Begin(),
        ServedCount(fresh=3),
        NewMaps(version="v"),
        ClassLosses(losses=(0.5, None, 0.0)),
        Stop(),
    ],
)
def test_the_generator_reads_what_the_trainer_writes(message):
    assert read_from_trainer(to_line(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Status(state="generating", generated=2, rejected=1, reused=4, images_per_s=1.5),
        Failed(reason="no room\nleft: é", is_final=True),
    ],
)
def test_the_trainer_reads_what_the_generator_writes(message):
    assert read_from_generator(to_line(message)) == message


def test_a_message_is_one_line_whatever_it_says():
    assert to_line(Failed(reason="two\nlines", is_final=False)).count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"Loading pipeline components...\n",
        b'{"type": "status"}\n',
        b'{"protocol": 2, "type": "status", "state": "loading"}\n',
        b'{"type": "status", "state": "loading", "extra": 1}\n',
        b"\xff\xfe\n",
        b"\n",
    ],
)
def test_a_line_that_is_not_a_message_is_skipped_by_the_trainer(line):
    assert read_from_generator(line) is None


@pytest.mark.parametrize("line", [b"stop\n", to_line(Status(state="paused"))])
def test_a_line_that_is_not_a_message_is_an_error_to_the_generator(line):
    with pytest.raises(ValueError, match="validation error"):
        read_from_trainer(line)


def test_images_and_rejections_of_an_earlier_process_are_added():
    earlier = Status(
        state="generating", generated=3, rejected=2, rejected_by_reason={"white": 2}, reused=9
    )
    now = Status(
        state="paused", generated=4, rejected=2, rejected_by_reason={"black": 1, "white": 1}
    )
    found = now.after(earlier)
    assert (found.state, found.generated, found.rejected, found.reused) == ("paused", 7, 4, 0)
    assert found.rejected_by_reason == {"white": 3, "black": 1}


@pytest.mark.parametrize("loss", ["-0.1", "NaN", "Infinity", '"hard"'])
def test_a_loss_that_is_not_a_loss_is_an_error_to_the_generator(loss):
    line = f'{{"type": "losses", "losses": [1.0, {loss}]}}'
    with pytest.raises(ValueError, match="validation error"):
        read_from_trainer(line.encode())


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


def test_a_child_finishes_at_a_stop_and_writes_only_messages_to_the_pipe(serving):
    out, err = serving.communicate(to_line(Stop()), PATIENCE_S)
    assert read_from_generator(out.splitlines()[-1]) == Status(state="finished", generated=1)
    assert (serving.returncode, err) == (0, b"a library says something\n")


def test_a_message_may_come_in_pieces(serving):
    message = to_line(Stop())
    for byte in message:
        serving.stdin.write(bytes([byte]))
        serving.stdin.flush()
    assert serving.wait(PATIENCE_S) == 0


def test_a_child_ends_when_the_pipe_is_closed(serving):
    serving.stdin.close()
    assert serving.wait(5) == 1


def test_a_child_ends_when_nobody_reads_its_messages(tmp_path):
    with start("echo", tmp_path) as process:
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 1


def test_a_child_ends_at_once_if_its_parent_is_gone(tmp_path):
    with start("tied to the parent", tmp_path, ONLINE_AUG_PARENT="1") as process:
        assert process.wait(PATIENCE_S) == 1
    assert list(tmp_path.iterdir()) == []
