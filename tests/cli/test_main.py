import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache import CacheError
from online_aug.cli.main import COMMANDS, SHELLS, parse_command, run_command, run_main
from online_aug.cli.train import SWITCHES
from online_aug.config.schema import fields, json_schema
from online_aug.errors import UserError

ROOT = Path(__file__).parents[2]


def parse(*argv, switches=SWITCHES, **more):
    return parse_command(
        argv, prog="online-aug train", summary="Trains.", switches=switches, **more
    )


def status_of(main, *argv, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", *argv])
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    return caught.value.code


def test_file_and_overrides_are_taken_in_order():
    command = parse("configs/x.yaml", "run.seed=1", "run.seed=2")
    assert command.recipe == "configs/x.yaml"
    assert command.overrides == ("run.seed=1", "run.seed=2")
    assert command.switches == frozenset()


def test_a_program_may_offer_no_switches():
    assert parse("x.yaml", switches={}).switches == frozenset()


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_dry_run_may_be_asked_for_anywhere_on_the_line(place):
    argv = ["x.yaml", "run.seed=1", "optim.lr=1"]
    argv.insert(place, "--dry-run")
    command = parse(*argv)
    assert command.switches == {"--dry-run"}
    assert command.overrides == ("run.seed=1", "optim.lr=1")


def test_what_the_deepspeed_launcher_adds_is_taken():
    assert parse("--local_rank=1", "x.yaml", "run.seed=1").overrides == ("run.seed=1",)


def test_a_negative_value_is_no_option():
    assert parse("x.yaml", "optim.lr=-1").overrides == ("optim.lr=-1",)


@pytest.mark.parametrize("argv", [[], ["x.yaml", "--seed", "3"], ["x.yaml", "--dry"]])
def test_a_wrong_option_or_no_file_is_one_line_that_names_the_help(argv):
    with pytest.raises(UserError, match=r"^[^\n]+; see online-aug train --help$"):
        parse(*argv)


def test_a_dry_run_is_refused_where_it_is_not_offered():
    with pytest.raises(UserError, match="--dry-run"):
        parse("x.yaml", "--dry-run", switches={})


def test_help_lists_every_key_and_exits_with_status_0(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        parse("--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: online-aug train RECIPE [key.sub=value ...] [--dry-run]")
    assert all(f"  {dotted}=" in text for dotted in fields())


def test_help_shows_the_examples_of_its_program(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        parse("--help", examples="x.yaml\nx.yaml run.seed=1")
    text = capsys.readouterr().out
    assert "examples:\n  online-aug train x.yaml\n  online-aug train x.yaml run.seed=1\n" in text


def test_the_command_loads_its_configuration(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("run: {epochs: 3}")
    config = parse(str(path), "run.seed=9").load_config()
    assert (config.run.epochs, config.run.seed) == (3, 9)


@pytest.mark.parametrize("kind", [UserError, CacheError])
def test_a_persons_mistake_is_one_line_each_on_stderr_and_status_2(kind, monkeypatch, capsys):
    def main(argv):
        raise kind("a must be b\nc must be d")

    assert status_of(main, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr() == ("", "error: a must be b\nerror: c must be d\n")


def test_an_error_line_holds_nothing_that_steers_a_terminal(monkeypatch, capsys):
    word = "\x1b[31mseed\x1b]0;mine\x07\udcff\u202e=1"
    for argv in (["train", "quickstart", word], ["train", word], [word], ["cache", "stats", word]):
        monkeypatch.setattr("sys.argv", ["online-aug", *argv])
        with pytest.raises(SystemExit) as end:
            run_main(run_command)
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.rstrip("\n").isprintable()


def test_a_full_disk_is_one_line_that_names_the_file_and_status_2(monkeypatch, capsys):
    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")

    assert status_of(main, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a disk must have room, got ")
    assert "No space left on device: 'runs/x/metrics.jsonl'; free space" in line


def test_another_failure_of_the_system_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        run_main(main)


def test_an_interrupt_is_status_130_without_a_traceback(monkeypatch, capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert status_of(main, monkeypatch=monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        run_main(main)


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (143, 143)])
def test_the_status_is_what_main_returns(returned, status, monkeypatch):
    assert status_of(lambda argv: returned, monkeypatch=monkeypatch) == status


def test_main_gets_the_arguments(monkeypatch):
    seen = []
    status_of(lambda argv: seen.extend(argv), "a", "b", monkeypatch=monkeypatch)
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["trian"],
            r"^the first argument must be a command \(train, .*\), got trian; nearest: train",
        ),
        (["quickstart"], "got quickstart; did you mean online-aug train quickstart"),
        (["my.yaml", "run.seed=1"], "got my.yaml; did you mean online-aug train my.yaml"),
        (["--verbose"], "unrecognized arguments: --verbose; see online-aug --help$"),
        (
            ["train", "quickstart", "--optim.lr=0.1"],
            "a key must be given as optim.lr=VALUE, without dashes, got --optim.lr=0.1$",
        ),
        (["schema", "x.yaml"], "unrecognized arguments: x.yaml; see online-aug schema --help$"),
        (["train", "quikstart"], "or the name of a recipe, got quikstart; nearest: quickstart"),
    ],
)
def test_a_wrong_command_or_recipe_is_one_line_with_what_was_meant(argv, line):
    with pytest.raises(UserError, match=line) as caught:
        run_command(argv)
    assert "\n" not in str(caught.value)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        run_command([])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", shown, re.MULTILINE) for name in COMMANDS)


def test_the_schema_is_printed_as_json(capsys):
    run_command(["schema"])
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_what_deepspeed_adds_before_the_command_is_taken(capsys):
    run_command(["--local_rank=1", "schema"])
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_knows_the_commands(shell, capsys):
    assert run_command(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert ("quickstart" in script and "run.seed=" in script) or shell == "tcsh"


@pytest.mark.slow
def test_completion_in_bash_offers_commands_recipes_and_keys(tmp_path):
    run = f"{sys.executable} -m online_aug --print-completion bash"
    script = f"""source <({run})
    complete_words() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=();
        $(complete -p online-aug | sed 's/.*-F \\([^ ]*\\).*/\\1/') online-aug "${{@: -1}}" "";
        echo "${{COMPREPLY[@]}}"; }}
    complete_words online-aug tr
    complete_words online-aug train quicks
    complete_words online-aug train quickstart run.se
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = ["bash", "-c", script]
    done = subprocess.run(
        shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "train",
        "quickstart",
        "run.seed=",
    ]
