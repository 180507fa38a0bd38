"""A measured figure, and the flat record in which it is saved."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cohortloom.base.files import write_json
from cohortloom.base.step import log
from cohortloom.evaluation.intervals import Estimate

FIELDS = (
    "run",
    "seed",
    "mode",
    "metric",
    "column",
    "subset",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "n_reference",
    "higher_is_better",
    "real",
    "real_low",
    "real_high",
    "copy",
    "naive",
    "target",
    "pass",
    "reason",
)
TOO_FEW = "too few cases to compute it"  # the default reason
ALL = "all"  # column of a figure that does not belong to a single column of codes
HEADLINE = "diagnoses"  # the column of the criteria and of the sentences in reports
SCORED = (HEADLINE,)  # the columns of the evaluations that take long
NOT_TRAINED = "not trained"  # reason of a figure of a head with weight 0


class Figure(NamedTuple):
    """A figure as an evaluation measures it; `record` documents the fields."""

    metric: str
    subset: str
    estimate: Estimate
    n_reference: int | None = None
    higher_is_better: bool | None = None
    reason: str | None = None  # used only if there is no value
    column: str = ALL


def of_column(column: str, figures: Iterable[Figure]) -> list[Figure]:
    """The figures, assigned to one column of codes."""
    return [figure._replace(column=column) for figure in figures]


def is_headline(record: dict[str, Any]) -> bool:
    """Whether a record is of the whole set, and of the diagnoses or of all columns."""
    return not record["subset"] and record["column"] in (HEADLINE, ALL)


def save_figures(path: Path, figures: Iterable[Figure], run: str, seed: int, mode: str) -> None:
    """Save figures as records, in their order, and log those of the whole set."""
    write_json(path, as_records(figures, run, seed, mode))


def as_records(figures: Iterable[Figure], run: str, seed: int, mode: str) -> list[dict[str, Any]]:
    """Figures as records, in their order; those of the whole set are logged."""
    records = []
    for metric, subset, figure, n_reference, better, reason, column in figures:
        ends = (figure.value, figure.low, figure.high)
        cells = (*ends, figure.n, n_reference, better, reason, column)
        row = record(run, seed, mode, metric, subset, *cells)
        records.append(row)
        if not subset:
            log_record(row)
    log.info("%s: %d figures", run, len(records))
    return records


def log_record(row: dict[str, Any]) -> None:
    """Log the figure of a record, or the reason why it has no value."""
    if row["value"] is None:
        log.info("%s: %s has no value: %s", row["run"], row["metric"], row["reason"])
        return
    low, high = (math.nan if row[end] is None else row[end] for end in ("ci_low", "ci_high"))
    log.info(
        "%s: %s %.5g (%.5g to %.5g), n %d", row["run"], row["metric"], row["value"], low, high, row["n"] or 0
    )


def record(
    run: str,
    seed: int,
    mode: str,
    metric: str,
    subset: str = "",
    value: float | None = None,
    ci_low: float | None = None,
    ci_high: float | None = None,
    n: int | None = None,
    n_reference: int | None = None,
    higher_is_better: bool | None = None,
    reason: str | None = None,
    column: str = ALL,
) -> dict[str, Any]:
    """A figure with its 95% interval; undefined values (NaN, infinite) are null.

    `n` is the number of scored visits (or of the units that the metric names), `n_reference` the number they
    are compared with. `higher_is_better` is null if the aim is to equal real data. A record without a value
    has a `reason`, by default TOO_FEW; a record with a value has none. `column` is the column of codes, or
    all. The fields real, real_low, real_high, copy, naive, target and pass are null until summarize joins the
    runs.
    """
    cells = {
        "run": run,
        "seed": seed,
        "mode": mode,
        "metric": metric,
        "column": column,
        "subset": subset,
        "value": _finite(value),
        "ci_low": _finite(ci_low),
        "ci_high": _finite(ci_high),
        "n": None if n is None else int(n),
        "n_reference": None if n_reference is None else int(n_reference),
        "higher_is_better": None if higher_is_better is None else bool(higher_is_better),
    }
    if cells["value"] is None:
        cells["reason"] = reason or TOO_FEW
    return {field: cells.get(field) for field in FIELDS}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
