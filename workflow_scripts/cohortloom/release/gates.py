"""What attacks may find at most in what is published: the limits of resources/publication_limits.csv.

The upper end of the figure's own 95% interval must not lie above the limit. It lies higher where there are
fewer patients, so that a small test set closes the gate. Copies are allowed as often as held-out visits equal
training visits by chance, of which the lower end counts: it too is lower where there are fewer patients.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cohortloom.base.errors import UserError
from cohortloom.evaluation.records import is_headline
from cohortloom.reporting.scorecard import REAL, Record
from cohortloom.reporting.sentences import number


class Limit(NamedTuple):
    """The most that a figure's upper end may be; with `above_held_out` added to held-out's lower end."""

    metric: str
    mode: str
    limit: float
    above_held_out: bool
    reason: str


def read_limits(path: Path) -> list[Limit]:
    """Rows of publication_limits.csv. Raises UserError where it has none."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{path}: no limit; without limits nothing may be published")
    return [
        Limit(r["metric"], r["mode"], float(r["limit"]), r["above_held_out"] == "true", r["reason"])
        for r in rows
    ]


def find(records: Iterable[Record], run: str, limit: Limit) -> Record | None:
    """The record of a run's whole figure that a limit is about; None where there is none."""
    mine = (r for r in records if r["run"] == run and (r["metric"], r["mode"]) == (limit.metric, limit.mode))
    return next((r for r in mine if is_headline(r)), None)


def check_limits(
    records: list[Record], run: str, limits: Iterable[Limit], units: dict[str, str], where: str
) -> None:
    """Raise UserError for the first limit that a run's figure exceeds, or that cannot be judged.

    `units` are those of metrics.csv by metric. A figure without an interval is refused too: nothing then
    speaks for publishing.
    """
    for limit in limits:
        unit = units[limit.metric]
        found, held_out = find(records, run, limit) or {}, find(records, REAL, limit) or {}
        value, high = found.get("value"), found.get("ci_high")
        base = held_out.get("ci_low") if limit.above_held_out else 0.0
        if value is None or high is None or base is None:
            raise UserError(
                f"{where}: {limit.metric}: not measured with an interval, so a leak cannot be excluded; "
                "score more patients (dataset.test_fraction, evaluate.visits)"
            )
        most = base + limit.limit
        if high > most:
            raise UserError(
                f"{where}: {limit.metric}: {number(value, unit)}, by its 95% interval up to "
                f"{number(high, unit)}; at most {number(most, unit)} is published; train less (train.tokens, "
                "train.preset), or hold out more patients (dataset.test_fraction) where the interval is wide"
            )
