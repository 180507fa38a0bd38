"""Arms of an ablation compared with a reference arm, seed by seed, with verdicts.

The figure of an arm is the mean over its trainings with Student's t interval (95%) over the seeds. It is
compared with the reference by a paired t test on the differences of trainings with the same seed, which share
the order of visits, their corruption and the sampling. Many arms are compared on each figure, and one in
twenty would differ by chance: p is adjusted by Holm's method over all comparisons on that figure. Holm
controls the probability of one false verdict for each figure, not over all figures together.
"""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from scipy.special import stdtr

from cohortloom.evaluation.intervals import LEVEL, mean_interval
from cohortloom.evaluation.records import is_headline

REAL = "real"
# metric -> (mode of its records, the question it belongs to)
FIGURES = {
    "any_violation_rate": ("synthesize", "violations"),
    "hard_per_100k_visits": ("synthesize", "violations"),
    "restricted_share": ("synthesize", "violations"),
    "lm_loss": ("teacher_forced", "likelihood"),
    "js_distance": ("synthesize", "fidelity"),
    "bigram_r2": ("synthesize", "fidelity"),
    "carried_codes": ("synthesize", "recurrence"),
    "removed_mass": ("synthesize", "constraint"),
}
COLUMNS = (
    *("arm", "seed", "metric", "question", "value", "ci_low", "ci_high", "n", "real"),
    *("against", "difference", "difference_low", "difference_high", "p", "p_holm", "verdict"),
)
SIGNIFICANT, TENTATIVE = "", "perhaps "
SAME, NOT_SHOWN, NOT_JUDGED = "the same", "no difference shown", "not judged"
Row = dict[str, Any]


class Training(NamedTuple):
    """One training of an arm: its run, the arm, the seed, and the run of the training whose model it uses."""

    run: str
    arm: str
    seed: int
    model: str


class PairedTest(NamedTuple):
    """Mean of paired differences, its 95% interval, two-sided p of the t test."""

    mean: float
    low: float
    high: float
    p: float


def paired_test(differences: list[float]) -> PairedTest:
    """The t test of differences by seed; p is 1 if all are 0, and NaN for fewer than two."""
    mean, low, high = mean_interval(differences)
    n = len(differences)
    if n < 2:
        return PairedTest(mean, low, high, math.nan)
    error = statistics.stdev(differences) / n**0.5
    if error == 0:
        return PairedTest(mean, low, high, 1.0 if mean == 0 else 0.0)
    return PairedTest(mean, low, high, 2 * float(stdtr(n - 1, -abs(mean) / error)))


def holm(p: list[float]) -> list[float]:
    """p values adjusted by Holm's method; NaN stays NaN and does not count.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    adjusted, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def table(records: Iterable[Row], trainings: list[Training], reference: str) -> list[Row]:
    """Rows of the table: for each metric the arms with their comparisons, then the single trainings.

    A row without a seed is an arm: mean over n seeds, compared with the arm under `against`. An arm that uses
    the models of another arm is also compared with that one. A row with a seed is one training: its figure
    with the interval over patients, and n as the evaluation counts.
    """
    by_key = {(r["run"], r["mode"], r["metric"]): r for r in records if is_headline(r)}
    rows: list[Row] = []
    for metric, (mode, question) in FIGURES.items():
        real = by_key.get((REAL, mode, metric))
        base = {"metric": metric, "question": question, "real": real and real["value"]}
        single = {}
        for training in trainings:
            source = training.model if mode == "teacher_forced" else training.run
            record = by_key.get((source, mode, metric))
            if record is not None and record["value"] is not None:
                single[training] = record
        arms: dict[str, dict[int, Row]] = {}
        for training, record in single.items():
            arms.setdefault(training.arm, {})[training.seed] = record
        rows += [_row(base, **r) for r in _compared(arms, comparisons(trainings, reference), real)]
        for training, record in single.items():
            cells = {key: record[key] for key in ("value", "ci_low", "ci_high", "n")}
            rows.append(_row(base, arm=training.arm, seed=training.seed, **cells))
    return rows


def comparisons(trainings: list[Training], reference: str) -> list[tuple[str, str | None]]:
    """(arm, the arm it is compared with) in order; None for the reference."""
    arm_of = {training.run: training.arm for training in trainings}
    result: list[tuple[str, str | None]] = []
    for arm, model in dict.fromkeys((t.arm, arm_of[t.model]) for t in trainings):
        result.append((arm, None if arm == reference else reference))
        if model not in (arm, reference):
            result.append((arm, model))
    return result


def _compared(
    arms: dict[str, dict[int, Row]], compared: list[tuple[str, str | None]], real: Row | None
) -> list[Row]:
    """One row for each of `compared` (arm, the other arm), with Holm's p over them.

    arms: arm -> seed -> record.
    """
    values = {
        arm: {seed: float(record["value"]) for seed, record in records.items()}
        for arm, records in arms.items()
    }
    rows = []
    for arm, against in compared:
        if arm not in arms:
            continue
        mean, low, high = mean_interval(list(values[arm].values()))
        row = {"arm": arm, "value": mean, "ci_low": low, "ci_high": high, "n": len(values[arm])}
        test, direction = PairedTest(math.nan, math.nan, math.nan, math.nan), ""
        if seeds := sorted({*values[arm]} & {*values.get(against, {})}):
            test = paired_test([values[arm][seed] - values[against][seed] for seed in seeds])
            better = next(iter(arms[arm].values()))["higher_is_better"]
            other = statistics.fmean(values[against][seed] for seed in seeds)
            direction = _direction(test.mean, better, real, other)
        row |= {"difference": test.mean, "difference_low": test.low, "difference_high": test.high}
        rows.append(row | {"against": against, "p": test.p, "direction": direction})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
        direction = row.pop("direction")
        row["verdict"] = "reference" if row["against"] is None else verdict(row, direction)
    return rows


def _direction(difference: float, higher_is_better: bool | None, real: Row | None, other: float) -> str:
    """Direction of a difference: better or worse; if no side is better, nearer to real or further."""
    if higher_is_better is not None:
        return "better" if (difference > 0) == higher_is_better else "worse"
    if real is None or real["value"] is None:
        return "higher" if difference > 0 else "lower"
    nearer = abs(other + difference - real["value"]) < abs(other - real["value"])
    return "nearer to real" if nearer else "further from real"


def verdict(row: Row, direction: str) -> str:
    """The verdict on a difference: significant after Holm, perhaps (only before Holm), not shown, or none."""
    if math.isnan(row["p"]):
        return NOT_JUDGED
    if row["difference"] == 0 and row["p"] == 1:
        return SAME
    if row["p_holm"] < 1 - LEVEL:
        return SIGNIFICANT + direction
    return TENTATIVE + direction if row["p"] < 1 - LEVEL else NOT_SHOWN


def _row(base: Row, **values: Any) -> Row:
    """A row with all columns; values that are not finite are null."""
    row = {name: {**base, **values}.get(name) for name in COLUMNS}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def verdict_sentences(rows: list[Row], titles: dict[str, str]) -> list[str]:
    """Sentences: the figures that differ in each comparison, then the arms that lower violations."""
    sentences, lower = [], {SIGNIFICANT: [], TENTATIVE: []}
    compared = [row for row in rows if row["seed"] is None and row["against"]]
    for arm, against in dict.fromkeys((row["arm"], row["against"]) for row in compared):
        own = [row for row in compared if (row["arm"], row["against"]) == (arm, against)]
        differing = [row for row in own if row["verdict"] not in (SAME, NOT_SHOWN, NOT_JUDGED)]
        parts = [
            f"{titles.get(row['metric'], row['metric'])} {row['verdict']} "
            f"({row['value'] - row['difference']:.4g} to {row['value']:.4g})"
            for row in differing
        ]
        judged = [row["n"] for row in own if row["verdict"] != NOT_JUDGED]
        no_difference = f"{NOT_SHOWN} with {min(judged)} seeds" if judged else f"{NOT_JUDGED}, too few seeds"
        sentences.append(f"{arm} against {against}: " + ("; ".join(parts) or no_difference) + ".")
        for row in own:
            if row["metric"] == "any_violation_rate":
                for certainty in (SIGNIFICANT, TENTATIVE):
                    if row["verdict"] == certainty + "better":
                        lower[certainty].append(f"{arm} (against {against})")
    sure = "Violations are lower, all comparisons counted: "
    perhaps = "Perhaps lower (not after all comparisons are counted): "
    sentences.append(sure + (", ".join(lower[SIGNIFICANT]) or "none") + ".")
    sentences.append(perhaps + (", ".join(lower[TENTATIVE]) or "none") + ".")
    return sentences
