import pytest

from online_aug.producer.messages import (
    ClassLosses,
    Failed,
    NewMaps,
    ServedCount,
    Status,
    Stop,
    read_from_generator,
    read_from_trainer,
)


def line_of(message):
    return message.model_dump_json().encode() + b"\n"


@pytest.mark.parametrize(
    "message",
    [
        ServedCount(fresh=3),
        NewMaps(version="v"),
        ClassLosses(losses=(0.5, None, 0.0)),
        Stop(),
    ],
)
def test_the_generator_reads_what_the_trainer_writes(message):
    assert read_from_trainer(line_of(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Status(state="generating", generated=2, rejected=1, reused=4, images_per_s=1.5),
        Failed(reason="no room\nleft: é", is_final=True),
    ],
)
def test_the_trainer_reads_what_the_generator_writes(message):
    assert read_from_generator(line_of(message)) == message


def test_a_message_is_one_line_whatever_it_says():
    assert line_of(Failed(reason="two\nlines", is_final=False)).count(b"\n") == 1


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
def test_what_is_no_message_is_passed_over_by_the_trainer(line):
    assert read_from_generator(line) is None


@pytest.mark.parametrize("line", [b"stop\n", line_of(Status(state="paused"))])
def test_what_is_no_message_is_an_error_to_the_generator(line):
    with pytest.raises(ValueError, match="validation error"):
        read_from_trainer(line)


def test_what_an_earlier_process_made_and_rejected_is_counted_in():
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
def test_a_loss_that_is_none_is_an_error_to_the_generator(loss):
    line = f'{{"type": "losses", "losses": [1.0, {loss}]}}'
    with pytest.raises(ValueError, match="validation error"):
        read_from_trainer(line.encode())
