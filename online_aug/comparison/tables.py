"""The table of a comparison: accuracies over seeds, paired differences, images made, time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from online_aug.comparison.paired import difference, estimate
from online_aug.comparison.runs import Outcome
from online_aug.console import duration, percent
from online_aug.errors import UserError
from online_aug.reporting.tables import shares

Rows = Mapping[str, Mapping[int, Outcome]]
"""The finished runs of each row, by seed."""
Columns = dict[str, list[str]]
"""The cells of each column, one for each row; the first column names the rows."""


def compare(rows: Rows) -> Columns:
    """Return the table: means with 95 % intervals, paired differences to the first row, costs.

    Raises:
        UserError: If the runs do not have equal numbers of optimizer steps.
    """
    optimizer_steps(rows)
    found: Columns = {"method": [*rows], "seeds": [str(len(runs)) for runs in rows.values()]}
    first, *_ = rows
    parts = list(dict.fromkeys(part for _, run in _all(rows) for part in run.shares))
    cells = {(row, part): _shares(runs, part) for row, runs in rows.items() for part in parts}
    for part in parts:
        found[f"{part}, %"] = [estimate([*cells[row, part].values()]).text() for row in rows]
    for part in parts:
        gains = {row: difference(cells[row, part], cells[first, part]) for row in rows}
        found[f"{part} - {first}"] = [
            "" if row == first else gain.text(signed=True) for row, gain in gains.items()
        ]
    return found | _costs(rows)


def optimizer_steps(rows: Rows) -> int | None:
    """Return the number of optimizer steps of every run, None without a run.

    Raises:
        UserError: If they are not equal.
    """
    steps = {run.steps for _, run in _all(rows)}
    if len(steps) > 1:
        raise UserError(f"all runs must have equal optimizer steps, got {sorted(steps)}")
    return next(iter(steps), None)


def markdown(columns: Columns) -> str:
    """Write the table in Markdown, a line for each row."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)]
    return "\n".join(lines) + "\n"


def turned(columns: Columns) -> Columns:
    """Return the table with a column for each row."""
    (title, names), *others = columns.items()
    cells = {name: [cells[n] for _, cells in others] for n, name in enumerate(names)}
    return {title: [name for name, _ in others], **cells}


def draw(columns: Columns) -> Table:
    """Draw the table for a terminal, accuracies in bold."""
    names, *others = columns.values()
    table = Table(*columns)
    for title, *cells in zip(names, *others, strict=True):
        style = "bold" if title.endswith(", %") else ""
        table.add_row(Text(title), *(Text(cell, style) for cell in cells))
    return table


def as_records(rows: Rows) -> dict[str, Any]:
    """Return the outcomes as plain values for JSON, by row and seed."""
    return {
        row: {str(seed): _record(outcome) for seed, outcome in runs.items()}
        for row, runs in rows.items()
    }


def _record(outcome: Outcome) -> dict[str, Any]:
    summary = outcome.summary
    return {
        **{part.replace(" ", "_"): share for part, share in outcome.shares.items()},
        "steps": outcome.steps,
        "generated": summary.generated,
        "reused": summary.reused,
        "starved_share": shares(summary.served)["starved"],
        "most_served": summary.most_served,
        "wall_s": summary.wall_s,
    }


def _all(rows: Rows) -> Iterator[tuple[int, Outcome]]:
    for runs in rows.values():
        yield from runs.items()


def _shares(runs: Mapping[int, Outcome], part: str) -> dict[int, float]:
    return {seed: run.shares[part] for seed, run in runs.items() if part in run.shares}


def _costs(rows: Rows) -> Columns:
    made: dict[str, Callable[[Sequence[Outcome]], str]] = {
        "images made": lambda runs: f"{sum(run.summary.generated for run in runs):,}",
        "images reused a run": lambda runs: f"{fmean(run.summary.reused for run in runs):,.0f}",
        "an image served at most": lambda runs: (
            f"{max(run.summary.most_served for run in runs)} times"
        ),
    }
    found = {
        title: [text(runs) if _makes(runs) else "-" for runs in map(_outcomes, rows.values())]
        for title, text in made.items()
        if any(_makes(_outcomes(runs)) for runs in rows.values())
    }
    found["slots starved"] = [_starved(_outcomes(runs)) for runs in rows.values()]
    found["time a run"] = [_time(_outcomes(runs)) for runs in rows.values()]
    return found


def _outcomes(runs: Mapping[int, Outcome]) -> list[Outcome]:
    return list(runs.values())


def _makes(runs: Sequence[Outcome]) -> bool:
    return any(run.serves_generated for run in runs)


def _starved(runs: Sequence[Outcome]) -> str:
    found = [shares(run.summary.served)["starved"] for run in runs]
    served = any(run.summary.served.slots > run.summary.served_real for run in runs)
    return percent(fmean(found)) if served else "-"


def _time(runs: Sequence[Outcome]) -> str:
    return duration(fmean(run.summary.wall_s for run in runs)) if runs else "-"
