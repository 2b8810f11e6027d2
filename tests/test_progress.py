import io
import re
import time

import pytest
from rich.console import Console

from online_aug import console as progress_module
from online_aug.console import Tally, progress, stage


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_short_work_has_a_first_and_a_last_line(console: Console) -> None:
    with progress("fine-tuning", 4, console=console) as tally:
        for _ in range(4):
            tally.advance(note="loss 0.5")
    first, last = lines(console)
    assert first == "fine-tuning: 0/4"
    assert last.startswith("fine-tuning: 4/4 in ")


def test_work_that_hangs_in_one_item_is_not_silent(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.02)
    with progress("fine-tuning", 4, console=console) as tally:
        tally.advance(note="loss 0.5")
        time.sleep(0.3)
    told = [line for line in lines(console) if line.startswith("fine-tuning: 1/4, loss 0.5, ")]
    assert len(told) >= 2
    assert told[0].endswith(" left")


def test_a_stage_tells_how_long_it_took(console: Console) -> None:
    with stage("loading the image generator", console=console):
        pass
    first, last = lines(console)
    assert first.startswith("loading the image generator ... ")
    assert re.fullmatch(r"loading the image generator: done in \d+(\.\d)? s", last)


def test_a_stage_that_fails_is_not_called_done(console: Console) -> None:
    with pytest.raises(OSError, match="no disk"), stage("writing", console=console):
        raise OSError("no disk")
    assert not any("done" in line for line in lines(console))


def test_a_rank_that_is_not_the_first_shows_no_progress(console: Console) -> None:
    with stage("one", enabled=False, console=console):
        pass
    with progress("two", 1, enabled=False, console=console) as tally:
        tally.advance()
    assert lines(console) == []
    assert tally.done == 1


def test_a_terminal_shows_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with progress("writing birds", 7, console=console) as tally:
        tally.advance(3, note="robin")
    assert isinstance(file.buffer, io.BytesIO)
    shown = file.buffer.getvalue().decode()
    assert "━" in shown
    assert "3/7" in shown
    assert "robin" in shown


def test_the_time_left_is_known_only_in_the_middle() -> None:
    tally = Tally("work", 2)
    states = [tally.state()]
    for _ in range(2):
        tally.advance()
        states.append(tally.state())
    assert [state.endswith("left") for state in states] == [False, True, False]
