"""The scorecard: every record with what real data and the naive methods score, and a verdict.

How `pass` is decided:

- the six criteria: by their absolute target (resources/metrics.csv, column target);
- every other metric: against held-out real data scored the same way. It passes where it is not worse than
  the worse end of real's 95% interval; a metric that has no better side must lie inside that interval;
- null where the value, real's value or real's interval is missing: nothing to judge by; and for a measure
  that is void because its own control failed (VOID_UNLESS).

The direction (higher_is_better) is the record's own.
"""

import csv
import operator
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.evaluation.intervals import mean_interval
from cohortloom.evaluation.records import FIELDS

# The user's six, in the order in which they are asked for; None takes whichever mode the metric has.
CRITERIA = {
    "age_head_loss": None,
    "sex_head_loss": None,
    "jaccard": "reconstruct",
    "age_violation_rate": "synthesize",
    "sex_violation_rate": "synthesize",
    "duplicate_rate": "synthesize",
}
REAL = "real"
NAIVE = ("prevalence", "markov", "echo")  # `copy` has a column of its own
MEANINGFUL_VISITS = 2000  # test visits below which no figure says anything
SAME_SIZE = 0.05  # records whose n differ by a larger share are marked in the report
# A classifier that cannot even distinguish this method from real data says nothing about the others.
VOID_UNLESS = {"classifier_auc": ("markov", 0.70)}
_COMPARE = {"<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">": operator.gt}

Record = dict[str, object]
Key = tuple[str, str, str]


def read_metrics(path: Path) -> dict[str, dict[str, str]]:
    """Rows of resources/metrics.csv by metric name."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["metric"]: row for row in csv.DictReader(file)}


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All records of the evaluation files, in a fixed order whatever the order of the files.

    Raises UserError for a file that is not a list of records.
    """
    records = []
    for path in sorted(paths):
        found = read_json(path)
        if not isinstance(found, list):
            raise UserError(f"{path}: not a list of records; run the evaluation again")
        for record in found:
            missing = [name for name in FIELDS if name not in record]
            if missing:
                raise UserError(f"{path}: a record lacks {missing[0]}; run the evaluation again")
            records.append({name: record[name] for name in FIELDS})
    return sorted(records, key=lambda r: (str(r["run"]), str(r["mode"]), str(r["metric"]), str(r["subset"])))


def key(record: Record) -> Key:
    """What must agree before two records may be compared."""
    return str(record["mode"] or ""), str(record["metric"]), str(record["subset"] or "")


def join(records: list[Record], metrics: dict[str, dict[str, str]]) -> list[Record]:
    """New records with real, copy, naive, target and pass filled in (see the top of this file)."""
    by_run = _by_run(records)
    void = {(mode, metric) for mode, metric, _ in voided(records)}
    joined = []
    for record in records:
        others = _references(record, by_run)
        target = criterion_target(record, metrics)
        passed = _meets(record, target) if target else _as_good_as(record, others["real"])
        verdict = {"target": target and target[1], "pass": None if key(record)[:2] in void else passed}
        values = {name: other and other["value"] for name, other in others.items()}
        joined.append({**record, **values, **verdict})
    return joined


def voided(records: list[Record]) -> list[tuple[str, str, float | None]]:
    """(mode, metric, what the control scored) of each measure whose control fell short or is missing."""
    by_run, found = _by_run(records), []
    for mode, metric in sorted({key(record)[:2] for record in records if record["metric"] in VOID_UNLESS}):
        method, minimum = VOID_UNLESS[metric]
        value = by_run.get((method, (mode, metric, "")), {}).get("value")
        if value is None or value < minimum:
            found.append((mode, metric, value))
    return found


def _by_run(records: list[Record]) -> dict[tuple[str, Key], Record]:
    return {(str(record["run"]), key(record)): record for record in records}


def _references(record: Record, by_run: dict[tuple[str, Key], Record]) -> dict[str, Record | None]:
    """What a record is compared with: the same figure of real, of copy and of the best naive method."""
    real, copied = (by_run.get((run, key(record))) for run in (REAL, "copy"))
    return {"real": real, "copy": copied, "naive": best_naive(record, by_run)}


def best_naive(record: Record, by_run: dict[tuple[str, Key], Record]) -> Record | None:
    """The best of the naive methods at this metric; where no side is better, the one closest to real."""
    found = [by_run.get((method, key(record))) for method in NAIVE]
    found = [other for other in found if other is not None and other["value"] is not None]
    if not found:
        return None
    if record["higher_is_better"] is None:
        real = by_run.get((REAL, key(record)))
        if real is None or real["value"] is None:
            return None
        return min(found, key=lambda other: abs(other["value"] - real["value"]))
    return (max if record["higher_is_better"] else min)(found, key=lambda other: other["value"])


def criterion_target(record: Record, metrics: dict[str, dict[str, str]]) -> tuple[str, float] | None:
    """Comparison and bound of a criterion's record, such as ("<", 5.0); None for any other record."""
    mode, metric, subset = key(record)
    if metric not in CRITERIA or subset or CRITERIA[metric] not in (None, mode):
        return None
    sign, bound = metrics[metric]["target"].split()
    return sign, float(bound)


def _meets(record: Record, target: tuple[str, float]) -> bool | None:
    return None if record["value"] is None else bool(_COMPARE[target[0]](record["value"], target[1]))


def _as_good_as(record: Record, real: Record | None) -> bool | None:
    """Whether a record is not worse than real's 95% interval; None where that cannot be said."""
    if real is None or any(real[name] is None for name in ("value", "ci_low", "ci_high")):
        return None
    value, higher = record["value"], record["higher_is_better"]
    if value is None:
        return None
    above, below = value >= real["ci_low"], value <= real["ci_high"]
    return bool(above and below) if higher is None else bool(above if higher else below)


def unequal_sizes(records: list[Record]) -> dict[tuple[str, Key], list[str]]:
    """For each (run, key) the columns (real, copy, naive) whose n is over 5% off the record's own n."""
    by_run = _by_run(records)
    marks = {}
    for (run, where), record in by_run.items():
        others = _references(record, by_run).items()
        off = [name for name, other in others if other is not None and _differ(record, other)]
        if off:
            marks[run, where] = off
    return marks


def _differ(record: Record, other: Record) -> bool:
    if not record["n"] or other["n"] is None or other["value"] is None:
        return False
    return abs(other["n"] - record["n"]) > SAME_SIZE * record["n"]


def criteria(records: list[Record], run: str) -> list[Record]:
    """The six records of a run, in the order of CRITERIA.

    Raises UserError where an evaluation of the run is missing.
    """
    found = []
    for metric, mode in CRITERIA.items():
        match = [
            record
            for record in records
            if record["run"] == run and record["metric"] == metric and not record["subset"]
            if mode in (None, record["mode"])
        ]
        if not match:
            raise UserError(f"{run}: no record of {metric}; run evaluate_all, which writes it")
        found.append(match[0])
    return found


def over_seeds(records: list[Record]) -> list[dict[str, object]]:
    """Mean and spread of each figure of a run that was trained with several seeds.

    `records` are joined. Each entry: run (its name without the seed), mode, metric, subset, seeds (how
    many), mean, sd (n - 1), min, max, ci_low and ci_high (95% of the mean over trainings, Student's t),
    real, naive, target, and passed (how many of the seeds pass; null where none is judged). The interval is
    over trainings; the records' own are over patients.
    """
    groups: dict[tuple[str, Key], list[Record]] = {}
    for record in records:
        name, seeded = re.subn(r"-s\d+$", "", str(record["run"]))
        if seeded and record["value"] is not None:
            groups.setdefault((name, key(record)), []).append(record)
    found = []
    for (run, (mode, metric, subset)), members in groups.items():
        if len(members) < 2:
            continue
        values = [float(record["value"]) for record in members]
        mean, low, high = mean_interval(values)
        verdicts = [record["pass"] for record in members if record["pass"] is not None]
        found.append(
            {
                "run": run,
                "mode": mode,
                "metric": metric,
                "subset": subset,
                "seeds": len(values),
                "mean": mean,
                "sd": statistics.stdev(values),
                "min": min(values),
                "max": max(values),
                "ci_low": low,
                "ci_high": high,
                **{name: members[0][name] for name in ("real", "naive", "target")},
                "passed": sum(verdicts) if verdicts else None,
            }
        )
    return found


def build(experiment: str, records: list[Record], main: str, metrics: dict[str, dict[str, str]]) -> dict:
    """The content of scorecard.json from the records as the evaluations wrote them.

    Raises UserError for a metric that metrics.csv does not explain: no figure without its meaning.
    """
    unknown = sorted({str(record["metric"]) for record in records} - set(metrics))
    if unknown:
        raise UserError(f"metrics.csv: no row for the metric {unknown[0]}; say there what it means")
    joined = join(records, metrics)
    card = {"experiment": experiment, "criteria": criteria(joined, main), "records": joined}
    spread = over_seeds(joined)
    return {**card, "over_seeds": spread} if spread else card  # one seed has no spread
