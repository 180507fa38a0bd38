"""Limits for figures of attacks on a published model and cohort (resources/publication_limits.csv).

The upper end of the figure's 95% interval must not exceed the limit. It is higher with fewer patients, so a
small test set prevents publication. Copies are allowed at the rate at which held-out visits equal training
visits by chance; the lower end of that rate counts, which is lower with fewer patients.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cohortloom.base.errors import UserError
from cohortloom.evaluation.records import is_headline
from cohortloom.reporting.scorecard import REAL, Record
from cohortloom.reporting.sentences import format_number


class Limit(NamedTuple):
    """The largest permitted upper end of a figure; with `above_held_out` relative to held-out's lower end."""

    metric: str
    mode: str
    limit: float
    above_held_out: bool
    reason: str


def read_limits(path: Path) -> list[Limit]:
    """Rows of publication_limits.csv. Raises UserError if it has none."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{path}: no limit; without limits nothing may be published")
    return [
        Limit(r["metric"], r["mode"], float(r["limit"]), r["above_held_out"] == "true", r["reason"])
        for r in rows
    ]


def find_record(records: Iterable[Record], run: str, limit: Limit) -> Record | None:
    """The record of a run that a limit applies to; None if there is none."""
    own = (r for r in records if r["run"] == run and (r["metric"], r["mode"]) == (limit.metric, limit.mode))
    return next((r for r in own if is_headline(r)), None)


def check_limits(
    records: list[Record], run: str, limits: Iterable[Limit], units: dict[str, str], where: str
) -> None:
    """Raise UserError for the first limit that a run's figure exceeds, or that cannot be judged.

    units: unit of each metric, from metrics.csv. where: start of the message. A figure without an interval is
    refused too, because a leak cannot be excluded.
    """
    for limit in limits:
        unit = units[limit.metric]
        record, held_out = find_record(records, run, limit) or {}, find_record(records, REAL, limit) or {}
        value, high = record.get("value"), record.get("ci_high")
        base = held_out.get("ci_low") if limit.above_held_out else 0.0
        if value is None or high is None or base is None:
            raise UserError(
                f"{where}: {limit.metric}: not measured with an interval, so a leak cannot be excluded; "
                "score more patients (dataset.test_fraction, evaluate.visits)"
            )
        max_high = base + limit.limit
        if high > max_high:
            raise UserError(
                f"{where}: {limit.metric}: {format_number(value, unit)}, by its 95% interval up to "
                f"{format_number(high, unit)}; at most {format_number(max_high, unit)} is published; "
                "train less (train.tokens, train.preset), or hold out more patients (dataset.test_fraction) "
                "where the interval is wide"
            )
