"""Writing of the reports: the page of a run in its directory, and the page of several runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from online_aug.classifier.evaluation import Evaluation
from online_aug.files import write_atomically
from online_aug.reporting.html_report.one_run import one_run_page
from online_aug.reporting.html_report.recorded_run import read_run
from online_aug.reporting.html_report.several_runs import several_runs_page
from online_aug.reporting.metrics import Summary
from online_aug.reporting.run_directory import REPORT_FILE


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    summary: Summary | None = None,
    evaluation: Evaluation | None = None,
) -> Path:
    """Write the page of a run, finished or in training, and return where it is.

    Args:
        folder: The run directory.
        out: The file; `report.html` in the run directory by default.
        summary: The summary of a run that is about to write it; None reads it, if it is there.
        evaluation: The evaluation on the test split, likewise.

    Raises:
        UserError: If the directory is not that of a run that has trained an epoch.
    """
    path = out or folder / REPORT_FILE
    run = read_run(folder)
    if summary is not None:
        run = replace(run, summary=summary, evaluation=evaluation)
    write_atomically(path, one_run_page(run))
    return path


def write_comparison(folders: Sequence[Path], out: Path) -> None:
    """Write the page of several runs on the same data.

    Args:
        folders: Their run directories; the order is that of the page.
        out: The file.

    Raises:
        UserError: If one is not a run that has trained an epoch, or their data differ.
    """
    write_atomically(out, several_runs_page([read_run(folder) for folder in folders]))
