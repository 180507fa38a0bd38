"""The table of targets: each figure over generation seeds, beside real data, and whether it is met.

A figure is the mean over the generation seeds of one trained model, with Student's t interval (95%) over the
seeds: how much it moves by chance of sampling alone. It says nothing of another training. Beside it stands
the first seed's own interval over patients. Targets are lines of resources/quality_targets.csv:

- `at_n`: the figure depends on how many visits are scored; only figures of that n (`same`: of our own n) may
  be compared, and a target for another n is not judged. Empty: a rate, which does not depend on n.
- `of`: what the bound is a multiple of (real, prevalence), or, with the comparison `within`, what the figure
  may differ from by the bound (real, or a number). Without it the bound stands for itself.
- Where real has too few visits for that n, copies of training patients stand in for it.
- `cohort`: the source of data the target was set for; empty for all. `needs`: a figure without which the line
  is left out, such as the codes carried on where nobody has a second visit.
"""

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

from cohortloom.base.errors import UserError
from cohortloom.reporting.ablation import mean_interval
from cohortloom.reporting.scorecard import REAL, SAME_SIZE, VOID_UNLESS

COPY = "copy"
PREVALENCE = "prevalence"
COLUMNS = ("metric", "mode", "size", "at_n", "cohort", "comparison", "bound", "of", "needs", "source")
# Where n does not count the scored visits. Prediction is tested on n real visits and learns from n_reference;
# the others count patients or pairs of visits, whose number is the generator's own: their size is that of the
# sample, which the Jensen-Shannon distance counts.
LEARNT_FROM = "prediction_auc"
OF_THE_SAMPLE = ("carried_codes", "ks_visits_per_patient", "sequential_bigram_r2")
COUNTS_VISITS = ("synthesize", "js_distance")
CARRIED = {"metric": "carried_codes", "mode": "synthesize", "size": "base"}  # has a value: several visits
Row = dict[str, Any]


class Sample(NamedTuple):
    """A generated set: its id, the run or naive method that made it, the generation seed, whether large."""

    name: str
    source: str
    seed: int
    large: bool


class Judged(NamedTuple):
    """What a figure is held to on this data: ends of the allowed range, what it rests on, why not judged."""

    low: float | None
    high: float | None
    against: str | None
    reference: float | None
    reason: str | None


def read_targets(path: Path) -> list[dict[str, str]]:
    """Lines of the table of targets, in order. Raises UserError that names the line and the wrong cell."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise UserError(f"{path}: column {missing[0]} is missing; restore it")
        found = []
        for row in reader:
            where = f"{path}: line {reader.line_num}: column"
            checks = {
                "comparison": r"<=|>=|within",
                "bound": r"\d+(\.\d+)?",
                "of": rf"|{REAL}|{PREVALENCE}|\d+(\.\d+)?",
                "size": r"|base|large",
                "at_n": r"|same|\d+",
            }
            for column, pattern in checks.items():
                if not re.fullmatch(pattern, row[column] or ""):
                    raise UserError(f"{where} {column}: {row[column]!r} is not one of its values; correct it")
            if row["comparison"] == "within" and not row["of"]:
                raise UserError(f"{where} of: empty; say what the figure is to lie within {row['bound']} of")
            found.append(row)
    return found


def table(records: list[Row], samples: list[Sample], targets: list[dict[str, str]], cohort: str) -> list[Row]:
    """One row a line of targets and run: the runs and methods in the order of `samples`, then real.

    Records are those of the samples, of held-out visits and of the runs' reconstruction. A row's `n` is the
    number of visits it rests on, `mean` with `ci_low` and `ci_high` is over `seeds` samples, `value` with
    `patients_low` and `patients_high` is the first one over patients. The first source is ours: its n decides
    what real has to match.
    """
    found = {(r["run"], r["mode"], r["metric"]): r for r in records if not r["subset"]}
    found = {where: {**record, "size": _size(record, found)} for where, record in found.items()}
    sources = [*dict.fromkeys(sample.source for sample in samples)]
    rows: list[Row] = []
    known = {source for source in sources if _records(found, samples, source, CARRIED)}
    for target in targets:
        if target["needs"] and not known:
            continue
        figures = {source: _records(found, samples, source, target) for source in sources}
        ours = figures[sources[0]]
        size = ours[0]["size"] if ours else None
        real = _real(found, target, size)
        judged = _judge(target, cohort, size, real, figures)
        for run, mine in [*figures.items(), (REAL, [real] if real else [])]:
            row = _row(target, run, mine, judged, real, figures)
            row["pass"] = _passes(row, judged, target["metric"]) if run != REAL else None
            rows.append(row)
    return rows


def _records(found, samples: list[Sample], source: str, target: dict[str, str]) -> list[Row]:
    """Records of a source that have a value, in order of their seed."""
    names = [
        sample.name
        for sample in sorted(samples, key=lambda sample: sample.seed)
        if sample.source == source and sample.large == (target["size"] == "large")
    ]
    names = names if target["size"] else [source]
    records = [found.get((name, target["mode"], target["metric"])) for name in names]
    return [record for record in records if record is not None and record["value"] is not None]


def _real(found, target: dict[str, str], size: int | None) -> Row | None:
    """Real's record: of as many visits where the figure depends on them, else of all held-out patients."""
    for name in (f"quality-{REAL}", REAL):
        record = found.get((name, target["mode"], target["metric"]))
        if record is None or record["value"] is None:
            continue
        if not target["at_n"] or _same(record["size"], size):
            return record
    return None


def _size(record: Row, found: dict[tuple, Row]) -> int | None:
    """How many visits a record rests on."""
    if record["metric"] == LEARNT_FROM:
        return record["n_reference"]
    if record["metric"] in OF_THE_SAMPLE:
        record = found.get((record["run"], *COUNTS_VISITS), record)
    return record["n"]


def _same(n: int | None, other: int | None) -> bool:
    return bool(n and other) and abs(n - other) <= SAME_SIZE * other


def _mean(records: list[Row]) -> float | None:
    return mean_interval([record["value"] for record in records])[0] if records else None


def _judge(target, cohort: str, size: int | None, real: Row | None, figures) -> Judged:
    """The range in which the figure has to lie, or the reason why there is none."""
    if target["cohort"] not in ("", cohort):
        return Judged(None, None, None, None, f"the target is for {target['cohort']}")
    if target["at_n"].isdecimal() and not _same(size, int(target["at_n"])):
        return Judged(None, None, None, None, f"the target is for n = {int(target['at_n']):,}")
    against, reference = None, None
    if target["of"] == REAL:
        against, reference = (REAL, real["value"]) if real else (COPY, None)
        if not real and target["at_n"]:  # a rate of real data has no stand-in: copies copy
            reference = _mean([r for r in figures.get(COPY, []) if _same(r["size"], size)])
    elif target["of"] == PREVALENCE:
        against, reference = PREVALENCE, _mean(figures.get(PREVALENCE, []))
    elif target["of"]:
        reference = float(target["of"])
    if target["of"] and reference is None:
        return Judged(None, None, None, None, f"nothing to compare with: no figure of {target['of']}")
    if (reason := _void(target["metric"], figures)) is not None:
        return Judged(None, None, None, None, reason)
    bound = float(target["bound"])
    if target["comparison"] == "within":
        return Judged(reference - bound, reference + bound, against, reference, None)
    end = bound if reference is None else bound * reference
    low, high = (end, None) if target["comparison"] == ">=" else (None, end)
    return Judged(low, high, against, reference, None)


def _void(metric: str, figures: dict[str, list[Row]]) -> str | None:
    """Why a measure says nothing: its own control fell short."""
    method, least = VOID_UNLESS.get(metric, (None, 0.0))
    if method is None:
        return None
    control = _mean(figures.get(method, []))
    if control is not None and control >= least:
        return None
    scored = "was not scored" if control is None else f"scores {control:.3f}"
    return f"void: the control {method} {scored}, {least:.2f} is needed"


def _row(target, run: str, records: list[Row], judged: Judged, real: Row | None, figures) -> Row:
    first = records[0] if records else {}
    mean, low, high = mean_interval([record["value"] for record in records]) if records else (None,) * 3
    # Seeds that agree to the last digit, as where nothing was ever counted, show no spread: not one of 0.
    several = len({record["value"] for record in records}) > 1
    return {
        "metric": target["metric"],
        "mode": target["mode"],
        "size": target["size"] or None,
        "at_n": target["at_n"] or None,
        "run": run,
        "n": first.get("size"),
        "seeds": len(records) if run != REAL else None,
        "mean": mean,
        "ci_low": low if several else None,
        "ci_high": high if several else None,
        "value": first.get("value"),
        "patients_low": first.get("ci_low"),
        "patients_high": first.get("ci_high"),
        "real": real["value"] if real else None,
        "copy": _mean(figures.get(COPY, [])),
        "comparison": target["comparison"],
        "bound": float(target["bound"]),
        "of": target["of"] or None,
        "against": judged.against,
        "reference": judged.reference,
        "target_low": judged.low,
        "target_high": judged.high,
        "source": target["source"],
        "reason": judged.reason,
    }


def _passes(row: Row, judged: Judged, metric: str) -> bool | None:
    """Whether the mean lies in the range; null where nothing is judged, and for the yardstick itself."""
    if (
        judged.reason
        or row["mean"] is None
        or row["run"] in (judged.against, VOID_UNLESS.get(metric, ("",))[0])
    ):
        return None
    above = judged.low is None or row["mean"] >= judged.low
    below = judged.high is None or row["mean"] <= judged.high
    return bool(above and below)
