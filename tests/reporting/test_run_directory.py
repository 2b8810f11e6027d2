import json
import os
import subprocess
from pathlib import Path

import pytest
from run_records import summary

from online_aug.config import Config
from online_aug.config.loading import resolved_yaml
from online_aug.errors import UserError
from online_aug.reporting.run_directory import (
    describe_resumption,
    finished_text,
    git_revision,
    is_finished,
    prepare,
    read_summary,
    write_summary,
)

CONFIG = """\
run: {name: null, dir: runs, seed: 0, epochs: 3, resume: true}
method: {name: diff_mix, strength: [0.5, 0.7]}
cache: {path: runs/cache}
classifier: {deepspeed: {}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "quick-seed0"
    prepare(path, CONFIG, "d1", resume=True)
    return path


def test_a_new_run_finds_its_configuration_in_the_directory(run: Path) -> None:
    assert (run / "config.yaml").read_text() == CONFIG


def test_the_environment_names_versions_machine_and_command(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith("2.")
    assert environment["config_digest"] == "d1"
    assert environment["cpus"] >= 1
    assert isinstance(environment["gpus"], list)
    assert environment["argv"]


def test_the_environment_does_not_name_the_host(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    del environment["argv"]
    assert os.uname().nodename not in json.dumps(environment)


def test_no_temporary_file_is_left(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == ["config.yaml", "environment.json"]


def test_the_same_run_is_resumed_and_nothing_of_it_is_lost(run: Path) -> None:
    (run / "metrics.jsonl").write_text("kept")
    assert prepare(run, CONFIG, "d1", resume=True) is None
    assert (run / "metrics.jsonl").read_text() == "kept"


def test_a_resume_keeps_what_earlier_launches_were_made_with(run: Path) -> None:
    prepare(run, CONFIG, "d2", resume=True)
    prepare(run, CONFIG, "d3", resume=True)
    environment = json.loads((run / "environment.json").read_text())
    digests = [launch["config_digest"] for launch in environment["earlier_launches"]]
    assert [*digests, environment["config_digest"]] == ["d1", "d2", "d3"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("epochs: 3", "epochs: 5"), ("dir: runs", "dir: elsewhere"), ("runs/cache", "/tmp/cache")],
)
def test_a_run_may_be_resumed_longer_or_elsewhere(run: Path, old: str, new: str) -> None:
    prepare(run, CONFIG.replace(old, new), "d1", resume=True)
    assert new in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed: 0", "seed: 1", r"run.seed \(0 there, 1 now\)"),
        ("[0.5, 0.7]", "[0.5]", r"method.strength \(\[0.5, 0.7\] there, \[0.5\] now\)"),
        ("{}", "{zero: {stage: 1}}", r"classifier.deepspeed.zero.stage \(nothing there, 1 now\)"),
    ],
)
def test_another_run_is_refused_with_the_keys_that_differ(
    run: Path, old: str, new: str, named: str
) -> None:
    with pytest.raises(UserError, match=rf"differs in {named}; choose another run.name, or set"):
        prepare(run, CONFIG.replace(old, new), "d2", resume=True)


def test_a_refusal_is_one_line_and_changes_nothing(run: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare(run, CONFIG.replace("seed: 0", "seed: 1"), "d2", resume=True)
    assert "\n" not in str(caught.value)
    assert (run / "config.yaml").read_text() == CONFIG


def test_without_resume_the_older_runs_are_moved_aside(run: Path) -> None:
    first = prepare(run, CONFIG.replace("seed: 0", "seed: 1"), "d2", resume=False)
    second = prepare(run, CONFIG, "d1", resume=False)
    assert first == run.with_name("quick-seed0.1")
    assert second == run.with_name("quick-seed0.2")
    assert "seed: 1" in (run.with_name("quick-seed0.2") / "config.yaml").read_text()


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="must be new, empty or an earlier run"):
        prepare(tmp_path, CONFIG, "d1", resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_start_that_crashed_before_its_first_file_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.77.tmp").write_text("ha")
    prepare(tmp_path, CONFIG, "d1", resume=True)
    assert (tmp_path / "config.yaml").read_text() == CONFIG


def test_a_file_in_the_place_of_the_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="must be a folder that can be written, got .* is a file"):
        prepare(tmp_path / "runs", CONFIG, "d1", resume=True)


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be a folder that can be written, got .* is a file$"):
        prepare(tmp_path / "file" / "run", CONFIG, "d1", resume=True)


def test_a_spoilt_configuration_is_a_user_error(run: Path) -> None:
    (run / "config.yaml").write_text("run: [")
    with pytest.raises(UserError, match=r"config\.yaml must be the configuration of a run"):
        prepare(run, CONFIG, "d1", resume=True)


def test_a_summary_is_read_back_as_written(run: Path) -> None:
    write_summary(run, summary())
    assert read_summary(run) == summary()


def test_a_run_is_finished_once_its_summary_stands(run: Path) -> None:
    assert not is_finished(run, epochs=3)
    write_summary(run, summary(epochs=3))
    assert is_finished(run, epochs=3)


def test_a_finished_run_asked_for_more_epochs_is_not_finished(run: Path) -> None:
    write_summary(run, summary(epochs=3))
    assert not is_finished(run, epochs=5)


def test_a_finished_run_cannot_be_asked_for_fewer_epochs(run: Path) -> None:
    write_summary(run, summary())
    with pytest.raises(UserError, match="run.epochs must be at least 3, .* got 2; choose another"):
        prepare(run, CONFIG.replace("epochs: 3", "epochs: 2"), "d1", resume=True)


def test_a_missing_summary_says_how_to_get_it(run: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json is missing: the run has not finished"):
        read_summary(run)


def test_the_revision_is_marked_dirty_when_a_tracked_file_differs(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "module.py"
    file.write_text("one")
    git("init", "-q")
    assert git_revision(file) is None
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert git_revision(file) == commit
    file.write_text("two")
    assert git_revision(file) == f"{commit}-dirty"


def test_a_finished_run_says_when_and_how_to_train_again(run: Path) -> None:
    assert finished_text(run, epochs=3) is None
    write_summary(run, summary(epochs=3))
    assert finished_text(run, epochs=5) is None
    said = finished_text(run, epochs=3)
    assert said is not None
    assert said.startswith(f"{run} was already finished on 2")
    assert "(3 epochs): nothing was done. To train again: run.resume=false" in said
    assert "moved to quick-seed0.1)" in said


@pytest.mark.parametrize(
    ("epochs", "schedule", "is_said"),
    [(20, "cosine", False), (40, "cosine", True), (40, "constant", False)],
)
def test_a_longer_run_says_that_its_learning_rates_change(
    run: Path, epochs: int, schedule: str, is_said: bool
) -> None:
    (run / "config.yaml").write_text(resolved_yaml(Config()))
    config = Config(run={"epochs": epochs}, optim={"schedule": schedule})
    said = describe_resumption(run, config)
    assert ("run.epochs was 20, 40 now" in said) == is_said
    assert describe_resumption(run.with_name("new"), config) == ""
