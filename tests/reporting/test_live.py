import io
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from run_records import epoch, summary

from online_aug.console import is_watched, open_console
from online_aug.reporting import live as live_module
from online_aug.reporting.live import GeneratorView, LiveReport, print_summary
from online_aug.reporting.tables import epoch_line
from online_aug.request import Counts

GENERATOR = GeneratorView(
    state="generating",
    images_per_s=9.2,
    generated=31,
    cache_entries=531,
    cache_bytes=2**21,
    samples_per_insert=3.2,
)
SERVED = Counts(real=66, fresh=10, cached=11, starved=13)


class Loss:
    """Counts how often it is read, as reading a tensor waits for its device."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 1.25


class Clock:
    """Stands for the time module: the report only asks `monotonic`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    clock = Clock()
    monkeypatch.setattr(live_module, "time", clock)
    return clock


def terminal(width: int = 80) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    environment = {"TERM": "xterm-256color"}
    return Console(
        file=file, force_terminal=True, width=width, _environ=environment, color_system=None
    )


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80, highlight=False)


def text_of(console: Console) -> str:
    file = console.file
    if isinstance(file, io.TextIOWrapper):
        assert isinstance(file.buffer, io.BytesIO)
        return file.buffer.getvalue().decode()
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_terminal_shows_everything_a_person_asks_for(clock: Clock) -> None:
    console = terminal()
    with LiveReport(20, 40, True, console=console) as live:
        live.step(2, 10, 1.25, SERVED, GENERATOR)
        clock.now_s += 1
        live.step(2, 11, 1.25, SERVED + SERVED, GENERATOR)
    shown = text_of(console)
    for part in ("epoch 3/20", "step 11/40", "loss 1.250", "100 images/s", "11 min 49 s left"):
        assert part in shown
    for part in ("real 66%  fresh 10%  cached 11%  starved 13%", "generating, 9.2/s", "31 made"):
        assert part in shown
    assert "cache 531 images, 2.0 MiB" in shown
    assert "each image served 3.2 times" in shown


@pytest.mark.parametrize(
    ("speed", "said"),
    [(8.0, "31 made, 1,200 to come in 2 min 30 s"), (0.0, "31 made, 1,200 to come")],
)
def test_how_many_images_are_still_to_come_is_told_with_every_step(speed, said):
    view = replace(GENERATOR, images_per_s=speed, to_come=1200)
    console = Console(file=io.StringIO(), width=120)
    with LiveReport(3, 40, True, console=console) as live:
        live.step(2, 40, 1.25, SERVED, view)
        live._shown_s = 0.0
        live.step(2, 40, 1.25, SERVED, view)
    assert f", {said}, cache 531 images" in text_of(console)


def test_the_speed_is_that_of_all_ranks(clock: Clock) -> None:
    console = terminal()
    with LiveReport(1, 40, True, ranks=3, console=console) as live:
        live.step(0, 1, 1.0, SERVED, None)
        clock.now_s += 1
        live.step(0, 2, 1.0, SERVED + SERVED, None)
    assert "300 images/s" in text_of(console)


def test_steps_between_two_redraws_do_not_read_the_loss(clock: Clock) -> None:
    loss = Loss()
    with LiveReport(1, 1000, True, console=terminal()) as live:
        for step in range(1, 101):
            live.step(0, step, loss, SERVED, GENERATOR)
            clock.now_s += 0.01
    assert loss.reads == 4


def test_the_last_step_of_an_epoch_is_always_drawn(clock: Clock) -> None:
    console = terminal()
    with LiveReport(1, 2, True, console=console) as live:
        live.step(0, 1, 1.0, SERVED, None)
        live.step(0, 2, 1.0, SERVED, None)
    assert "step 2/2  evaluating" in text_of(console)


def test_no_line_of_a_terminal_is_wider_than_80_characters(clock: Clock) -> None:
    console = terminal(width=200)
    with LiveReport(100, 1000, True, console=console) as live:
        live.step(98, 998, 12.5, SERVED, GENERATOR)
        live.epoch(epoch(99, images_per_s=12345.0, cache_bytes=1000 * 2**20, val_top1=1.0))
    lines = [line.split("\x1b")[0].rstrip() for line in text_of(console).splitlines()]
    assert max(map(len, lines)) <= 80


def test_every_epoch_leaves_a_row_under_one_head(clock: Clock) -> None:
    console = terminal()
    with LiveReport(3, 4, True, console=console) as live:
        for number in range(3):
            live.epoch(epoch(number))
    shown = text_of(console)
    assert [f"{number}/3" in shown for number in (1, 2, 3)] == [True] * 3
    assert shown.count("val top1") == 1


def test_a_pipe_gets_one_line_an_epoch_and_no_control_characters(clock: Clock) -> None:
    console = pipe()
    with LiveReport(2, 40, True, console=console) as live:
        live.message("generator: ready in 4.1 s")
        for number in range(2):
            live.step(number, 40, 1.25, SERVED, GENERATOR)
            live.epoch(epoch(number))
    lines = text_of(console).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "generator: ready in 4.1 s",
        "epoch 1/2: loss 1.500",
        "epoch 2/2: loss 1.500",
    ]
    assert text_of(console).isascii()
    assert "\x1b" not in text_of(console)


def test_a_long_epoch_is_not_silent_in_a_pipe(clock: Clock) -> None:
    console = pipe()
    with LiveReport(1, 1000, True, console=console) as live:
        for step in range(1, 101):
            clock.now_s += 1
            live.step(0, step, 1.25, SERVED, GENERATOR)
    lines = text_of(console).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch 1/1, step 30/1000, loss 1.250, ")


def test_a_rank_that_is_not_the_first_shows_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    console = pipe()
    with LiveReport(1, 1, False, console=console) as live:
        live.message("hello")
        live.step(0, 1, Loss(), SERVED, None)
        live.epoch(epoch(0))
    assert text_of(console) == capsys.readouterr().out == ""


def test_the_terminal_is_given_back_after_an_interrupt(clock: Clock) -> None:
    console = terminal()
    report = LiveReport(1, 2, True, console=console)

    def interrupted() -> None:
        with report as live:
            live.step(0, 1, 1.0, SERVED, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert text_of(console).rindex(shown) > text_of(console).rindex(hidden)


def test_no_thread_runs_that_a_forked_worker_could_inherit(clock: Clock) -> None:
    before = threading.active_count()
    with LiveReport(1, 2, True, console=terminal()) as live:
        live.step(0, 1, 1.0, SERVED, None)
        assert threading.active_count() == before


def test_text_in_brackets_is_shown_as_it_is(clock: Clock) -> None:
    console = pipe()
    with LiveReport(1, 1, True, console=console) as live:
        live.message("[bold]no markup[/bold] 3.5")
    assert text_of(console) == "[bold]no markup[/bold] 3.5\n"


@pytest.mark.parametrize(
    ("ci", "is_live"), [("", True), ("false", True), ("true", False), ("1", False)]
)
def test_a_ci_log_is_not_a_person_watching(ci: str, is_live: bool) -> None:
    assert is_watched(terminal(), {"CI": ci}) is is_live


def test_a_dumb_terminal_is_not_redrawn() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert not is_watched(console, {})


def test_all_displays_share_one_console() -> None:
    assert open_console() is open_console()


def test_the_summary_says_what_came_out_and_where_it_lies() -> None:
    console = pipe()
    print_summary(summary(), Path("runs/quick-seed0"), console)
    shown = text_of(console)
    for part in ("90.0 %", "91.0 % (epoch 2)", "null: 80%", "20 made, 5 reused"):
        assert part in shown
    assert "group" not in shown
    for part in ("70 real, 20 fresh, 10 cached", "12 s, 3 epochs", "runs/quick-seed0"):
        assert part in shown


def test_without_validation_the_last_epoch_alone_is_told() -> None:
    console = pipe()
    found = replace(summary(), top1_best_val=None, best_val_epoch=None)
    print_summary(found, Path("runs/x"), console)
    assert "best validation" not in text_of(console)
    assert "test top1, last epoch" in text_of(console)
    assert "val top1 -," in epoch_line(epoch(0, val_top1=math.nan), 3)


def test_the_summary_names_the_worst_group() -> None:
    console = pipe()
    groups = {"wren in sea": 0.6, "jay in snow": 0.55, "tern in sea": 1.0}
    found = replace(summary(), per_group=groups, worst_group=0.55)
    print_summary(found, Path("runs/quick-seed0"), console)
    lines = [line.strip("│ ") for line in text_of(console).splitlines()]
    assert next(line for line in lines if "test worst group" in line).endswith("55.0 %")
    assert "jay in snow: 55%, wren in sea: 60%, tern" in next(
        line for line in lines if "groups, worst first" in line
    )


@pytest.mark.parametrize(
    ("starved", "cached", "is_said"), [(7, 0, True), (7, 1, False), (0, 0, False)]
)
def test_a_run_that_served_no_generated_image_says_so_first(
    starved: int, cached: int, is_said: bool
) -> None:
    console = pipe()
    found = replace(summary(), served_fresh=0, served_cached=cached, starved=starved)
    print_summary(found, Path("runs/quick-seed0"), console)
    first = text_of(console).splitlines()[1]
    assert ("no generated image was served" in first) == is_said
