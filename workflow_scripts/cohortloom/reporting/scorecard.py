"""The scorecard: every record with the figures of real data and of naive methods, and a verdict.

How `pass` is decided:

- the six criteria: by their absolute target (resources/metrics.csv, column target);
- every other metric: by held-out real data scored in the same way. It passes if it is not worse than the
  worse end of real's 95% interval; a metric without a better side must lie inside the interval. The interval
  is wider with fewer held-out visits, so the report shows this margin with the verdict;
- F1 on hidden codes, which real data do not have: by the naive method linear (MUST_BEAT);
- null, with a `reason`: if the value, real's value or real's interval is missing; if n differs from real's by
  more than 5%, because most figures depend on it (those of OWN_NUMBER do not); and for a measure that is void
  because its control failed (VOID_UNLESS).

The direction (higher_is_better) is a field of the record.
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
from cohortloom.evaluation.records import FIELDS, is_headline

# The six criteria in their order, and the mode of each; None for a metric that has only one mode.
CRITERIA = {
    "age_head_loss": None,
    "sex_head_loss": None,
    "jaccard": "reconstruct",
    "age_violation_rate": "synthesize",
    "sex_violation_rate": "synthesize",
    "duplicate_rate": "synthesize",
}
REAL = "real"
NAIVE = ("prevalence", "linear", "markov", "echo")  # without `copy`, which has its own column
MEANINGFUL_VISITS = 2000  # with fewer test visits figures are mostly chance
SAME_SIZE = 0.05  # figures whose n differ by a larger share are not compared
# Rates and means over cases whose number depends on the generator, such as long visits: n is not compared.
OWN_NUMBER = (
    *("copy_share", "newborn_chronic_rate", "carried_codes"),
    *("mean_visits_per_patient", "mean_gap_days"),
)
N_DIFFERS = "n differs"
NO_VALUE, NO_REAL, VOID = "no value", "no interval of real", "void: its control failed"
# A metric is void unless it reaches this minimum for this method: the classifier must distinguish markov from
# real.
VOID_UNLESS = {"classifier_auc": ("markov", 0.70)}
# Attacks on two samples of the main run, of which the larger figure counts (see `larger_leaks`).
LEAKS = (
    *("copy_share", "membership_auc", "membership_tpr_1fpr", "membership_gain"),
    *("attribute_risk", "adversarial_risk"),
)
AGES_OF_TEST, AGES_OF_TRAINING = "ages and sexes of test", "ages and sexes of training"
# A figure and the naive method that a model must beat in it; else training is no better than counting.
MUST_BEAT = {"hidden_f1": "linear"}
_COMPARE = {"<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">": operator.gt}

Record = dict[str, object]
Key = tuple[str, str, str, str]  # mode, metric, column, subset


def read_metrics(path: Path) -> dict[str, dict[str, str]]:
    """Rows of resources/metrics.csv by metric name."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["metric"]: row for row in csv.DictReader(file)}


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All records of the evaluation files, in an order that does not depend on the order of the files.

    Raises UserError for a file that is not a list of records.
    """
    records = []
    for path in sorted(paths):
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path}: not a list of records; run the evaluation again")
        for record in content:
            missing = [name for name in FIELDS if name not in record]
            if missing:
                raise UserError(f"{path}: a record lacks {missing[0]}; run the evaluation again")
            records.append({name: record[name] for name in FIELDS})
    return sorted(records, key=lambda record: (str(record["run"]), *key(record)))


def key(record: Record) -> Key:
    """The fields in which two records must agree to be compared."""
    return (
        str(record["mode"] or ""),
        str(record["metric"]),
        str(record["column"] or ""),
        str(record["subset"] or ""),
    )


def join(records: list[Record], metrics: dict[str, dict[str, str]]) -> list[Record]:
    """New records with the fields from real to reason filled in (see the top of this file)."""
    by_run = _by_run(records)
    void = {where for where, _ in failed_controls(records)}
    joined = []
    for record in records:
        references = _references(record, by_run)
        real = references["real"] or {}
        target = criterion_target(record, metrics)
        passed, reason = _verdict(record, references["real"], target, key(record)[:3] in void)
        if (floor := naive_floor(record, by_run)) is not None:
            passed, reason = record["value"] > floor, None
        values = {name: other and other["value"] for name, other in references.items()}
        ends = {"real_low": real.get("ci_low"), "real_high": real.get("ci_high")}
        verdict = {"target": target and target[1], "pass": passed, "reason": reason}
        joined.append({**record, **values, **ends, **verdict})
    return joined


def larger_leaks(records: list[Record], main: str, privacy_run: str | None) -> list[Record]:
    """Records in which the figure of an attack on `main` is the larger of its two samples.

    `privacy_run` is the sample of the same model at the ages and sexes of training patients. Both figures are
    added as subsets, named by whose ages and sexes the sample has; the records of `privacy_run` are dropped.
    """
    others = {key(record): record for record in records if record["run"] == privacy_run}
    result: list[Record] = []
    for record in records:
        if record["run"] == privacy_run:
            continue
        other = others.get(key(record))
        if record["run"] != main or record["metric"] not in LEAKS or other is None:
            result.append(record)
            continue
        both = [record, {**other, "run": main, "seed": record["seed"]}]
        with_value = (sample for sample in both if sample["value"] is not None)
        result.append(max(with_value, key=lambda sample: sample["value"], default=record))
        names = (AGES_OF_TEST, AGES_OF_TRAINING)
        result += [{**sample, "subset": name} for sample, name in zip(both, names, strict=True)]
    return result


def failed_controls(records: list[Record]) -> list[tuple[tuple[str, str, str], float | None]]:
    """((mode, metric, column), value of the control) of each measure whose control failed or is missing."""
    by_run, failed = _by_run(records), []
    for where in sorted({key(record)[:3] for record in records if record["metric"] in VOID_UNLESS}):
        method, minimum = VOID_UNLESS[where[1]]
        value = by_run.get((method, (*where, "")), {}).get("value")
        if value is None or value < minimum:
            failed.append((where, value))
    return failed


def _by_run(records: list[Record]) -> dict[tuple[str, Key], Record]:
    return {(str(record["run"]), key(record)): record for record in records}


def _references(record: Record, by_run: dict[tuple[str, Key], Record]) -> dict[str, Record | None]:
    """The same figure of real, of copy and of the best naive method."""
    real, of_copy = (by_run.get((run, key(record))) for run in (REAL, "copy"))
    return {"real": real, "copy": of_copy, "naive": best_naive(record, by_run)}


def best_naive(record: Record, by_run: dict[tuple[str, Key], Record]) -> Record | None:
    """The best naive method at this metric; the one closest to real if no side is better."""
    candidates = [by_run.get((method, key(record))) for method in NAIVE]
    candidates = [other for other in candidates if other is not None and other["value"] is not None]
    if not candidates:
        return None
    if record["higher_is_better"] is None:
        real = by_run.get((REAL, key(record)))
        if real is None or real["value"] is None:
            return None
        return min(candidates, key=lambda other: abs(other["value"] - real["value"]))
    return (max if record["higher_is_better"] else min)(candidates, key=lambda other: other["value"])


def naive_floor(record: Record, by_run: dict[tuple[str, Key], Record]) -> float | None:
    """Value of the method in MUST_BEAT; None if the record need not beat one or either has no value."""
    method = MUST_BEAT.get(str(record["metric"]))
    if method is None or record["value"] is None or record["run"] in (REAL, "copy", *NAIVE):
        return None
    return by_run.get((method, key(record)), {}).get("value")


def naive_floors(records: list[Record], run: str) -> list[tuple[Record, str, float]]:
    """Each record of a run that must beat a naive method, with the method and its value."""
    by_run = _by_run(records)
    pairs = [(record, naive_floor(record, by_run)) for record in records if record["run"] == run]
    return [(record, MUST_BEAT[str(record["metric"])], value) for record, value in pairs if value is not None]


def criterion_target(record: Record, metrics: dict[str, dict[str, str]]) -> tuple[str, float] | None:
    """Comparison and bound of a criterion's record, such as ("<", 5.0); None for any other record."""
    mode, metric, *_ = key(record)
    if metric not in CRITERIA or not is_headline(record) or CRITERIA[metric] not in (None, mode):
        return None
    sign, bound = metrics[metric]["target"].split()
    return sign, float(bound)


def _verdict(
    record: Record, real: Record | None, target: tuple[str, float] | None, void: bool
) -> tuple[bool | None, str | None]:
    """Whether a record meets its target, or is not worse than real's 95% interval; or None and the reason."""
    value, higher = record["value"], record["higher_is_better"]
    if value is None:
        return None, record["reason"] or NO_VALUE
    if target:
        return bool(_COMPARE[target[0]](value, target[1])), None
    if void:
        return None, VOID
    if real is None or any(real[name] is None for name in ("value", "ci_low", "ci_high")):
        return None, NO_REAL
    counts = ("n_reference",) if record["metric"] in OWN_NUMBER else ("n", "n_reference")
    if not all(same_size(record[name], real[name]) for name in counts):
        return None, N_DIFFERS
    above, below = value >= real["ci_low"], value <= real["ci_high"]
    return bool(above and below) if higher is None else bool(above if higher else below), None


def same_size(n: int | None, other: int | None) -> bool:
    """Whether two numbers of cases differ by at most 5%; true if one is unknown.

    >>> same_size(105, 100), same_size(106, 100), same_size(None, 100)
    (True, False, True)
    """
    return n is None or other is None or abs(n - other) <= SAME_SIZE * other


def unequal_sizes(records: list[Record]) -> dict[tuple[str, Key], list[str]]:
    """For each (run, key) the columns (real, copy, naive) whose n differs from the record's by over 5%."""
    by_run = _by_run(records)
    unequal = {}
    for (run, where), record in by_run.items():
        columns = [
            name
            for name, other in _references(record, by_run).items()
            if other is not None and other["value"] is not None and not same_size(record["n"], other["n"])
        ]
        if columns:
            unequal[run, where] = columns
    return unequal


def criteria(records: list[Record], run: str) -> list[Record]:
    """The six records of a run, in the order of CRITERIA.

    Raises UserError where an evaluation of the run is missing.
    """
    result = []
    for metric, mode in CRITERIA.items():
        matches = [
            record
            for record in records
            if record["run"] == run and record["metric"] == metric and is_headline(record)
            if mode in (None, record["mode"])
        ]
        if not matches:
            raise UserError(f"{run}: no record of {metric}; run evaluate_all, which writes it")
        result.append(matches[0])
    return result


def over_seeds(records: list[Record]) -> list[dict[str, object]]:
    """Mean and spread of each figure of a run that is trained with several seeds.

    records: joined ones. Each entry has: run (its name without the seed), mode, metric, column, subset, seeds
    (their number), mean, sd (n - 1), min, max, ci_low and ci_high (95% of the mean over trainings, Student's
    t), real, naive, target, and passed (number of seeds that pass; null if none is judged). This interval is
    over trainings, those of the records are over patients.
    """
    groups: dict[tuple[str, Key], list[Record]] = {}
    for record in records:
        name, seeded = re.subn(r"-s\d+$", "", str(record["run"]))
        if seeded and record["value"] is not None:
            groups.setdefault((name, key(record)), []).append(record)
    entries = []
    for (run, (mode, metric, column, subset)), members in groups.items():
        if len(members) < 2:
            continue
        values = [float(record["value"]) for record in members]
        mean, low, high = mean_interval(values)
        verdicts = [record["pass"] for record in members if record["pass"] is not None]
        entries.append(
            {
                "run": run,
                "mode": mode,
                "metric": metric,
                "column": column,
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
    return entries


def build(
    experiment: str,
    records: list[Record],
    main: str,
    metrics: dict[str, dict[str, str]],
    privacy_run: str | None = None,
) -> dict:
    """The content of scorecard.json from the records of the evaluations.

    `privacy_run` is the sample of the main run at the ages and sexes of training patients. Raises UserError
    for a metric that metrics.csv does not explain.
    """
    unknown = sorted({str(record["metric"]) for record in records} - set(metrics))
    if unknown:
        raise UserError(f"metrics.csv: no row for the metric {unknown[0]}; say there what it means")
    joined = join(larger_leaks(records, main, privacy_run), metrics)
    card = {"experiment": experiment, "criteria": criteria(joined, main), "records": joined}
    spread = over_seeds(joined)
    return {**card, "over_seeds": spread} if spread else card  # empty for a single seed
