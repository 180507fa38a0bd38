"""What the arms of an ablation are worth: each against a reference, seed by seed, with a verdict.

An arm's figure is the mean over its trainings with Student's t interval (95%) over the seeds. It is compared
with the reference arm's by the differences of trainings of one seed (which share the order of the visits,
their corruption and the sampling), by a paired t test. Many arms are compared on each figure, so that one of
twenty would differ by chance: p is adjusted by Holm's method over all comparisons on that figure. Holm
controls the chance of one false verdict a figure, not over all figures together.
"""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from scipy.special import stdtr

from cohortloom.evaluation.intervals import LEVEL, mean_interval
from cohortloom.evaluation.records import is_headline

REAL = "real"
# figure -> (mode of its records, the question it answers)
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
SHOWN, LEANS = "", "perhaps "
SAME, NOT_SHOWN, NOT_JUDGED = "the same", "no difference shown", "not judged"
Row = dict[str, Any]


class Training(NamedTuple):
    """One training of an arm: its id, the arm, the seed, and the id of the training whose model it uses."""

    run: str
    arm: str
    seed: int
    model: str


class Paired(NamedTuple):
    """Mean of paired differences, its 95% interval, the two-sided p of the t test."""

    mean: float
    low: float
    high: float
    p: float


def paired(differences: list[float]) -> Paired:
    """The t test of differences by seed; p is 1 where all are 0, and NaN for fewer than two."""
    mean, low, high = mean_interval(differences)
    n = len(differences)
    if n < 2:
        return Paired(mean, low, high, math.nan)
    error = statistics.stdev(differences) / n**0.5
    if error == 0:
        return Paired(mean, low, high, 1.0 if mean == 0 else 0.0)
    return Paired(mean, low, high, 2 * float(stdtr(n - 1, -abs(mean) / error)))


def holm(p: list[float]) -> list[float]:
    """Holm's adjusted p values; NaN stays and counts nothing.

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
    """Rows of the table: of each figure the arms, each with its comparisons, then the single trainings.

    A row without a seed is an arm: mean over seeds, n of them. It is compared with the arm under `against`;
    an arm that takes the models of another one is compared with that one too. A row with a seed is one
    training: its own figure with the interval over patients, n as the evaluation counts.
    """
    found = {(r["run"], r["mode"], r["metric"]): r for r in records if is_headline(r)}
    rows: list[Row] = []
    for metric, (mode, question) in FIGURES.items():
        real = found.get((REAL, mode, metric))
        base = {"metric": metric, "question": question, "real": real and real["value"]}
        single = {}
        for training in trainings:
            source = training.model if mode == "teacher_forced" else training.run
            record = found.get((source, mode, metric))
            if record is not None and record["value"] is not None:
                single[training] = record
        arms: dict[str, dict[int, Row]] = {}
        for training, record in single.items():
            arms.setdefault(training.arm, {})[training.seed] = record
        rows += [_row(base, **r) for r in _compared(arms, pairs(trainings, reference), real)]
        for training, record in single.items():
            kept = {key: record[key] for key in ("value", "ci_low", "ci_high", "n")}
            rows.append(_row(base, arm=training.arm, seed=training.seed, **kept))
    return rows


def pairs(trainings: list[Training], reference: str) -> list[tuple[str, str | None]]:
    """(arm, the arm it is compared with) in order; the reference is compared with none."""
    arm_of = {training.run: training.arm for training in trainings}
    made: list[tuple[str, str | None]] = []
    for arm, model in dict.fromkeys((t.arm, arm_of[t.model]) for t in trainings):
        made.append((arm, None if arm == reference else reference))
        if model not in (arm, reference):
            made.append((arm, model))
    return made


def _compared(
    arms: dict[str, dict[int, Row]], wanted: list[tuple[str, str | None]], real: Row | None
) -> list[Row]:
    """A row a pair (arm, the arm it is compared with), with Holm's p over them; records by arm and seed."""
    values = {
        arm: {seed: float(record["value"]) for seed, record in records.items()}
        for arm, records in arms.items()
    }
    rows = []
    for arm, against in wanted:
        if arm not in arms:
            continue
        mean, low, high = mean_interval(list(values[arm].values()))
        row = {"arm": arm, "value": mean, "ci_low": low, "ci_high": high, "n": len(values[arm])}
        test, word = Paired(math.nan, math.nan, math.nan, math.nan), ""
        if both := sorted({*values[arm]} & {*values.get(against, {})}):
            test = paired([values[arm][seed] - values[against][seed] for seed in both])
            better = next(iter(arms[arm].values()))["higher_is_better"]
            word = _word(test.mean, better, real, statistics.fmean(values[against][s] for s in both))
        row |= {"difference": test.mean, "difference_low": test.low, "difference_high": test.high}
        rows.append(row | {"against": against, "p": test.p, "word": word})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
        word = row.pop("word")
        row["verdict"] = "reference" if row["against"] is None else verdict(row, word)
    return rows


def _word(difference: float, higher_is_better: bool | None, real: Row | None, other: float) -> str:
    """What the difference means: better or worse; without a better side, nearer to real or further off."""
    if higher_is_better is not None:
        return "better" if (difference > 0) == higher_is_better else "worse"
    if real is None or real["value"] is None:
        return "higher" if difference > 0 else "lower"
    nearer = abs(other + difference - real["value"]) < abs(other - real["value"])
    return "nearer to real" if nearer else "further from real"


def verdict(row: Row, word: str) -> str:
    """The difference in words: shown after Holm, perhaps (before it alone), not shown, or none at all."""
    if math.isnan(row["p"]):
        return NOT_JUDGED
    if row["difference"] == 0 and row["p"] == 1:
        return SAME
    if row["p_holm"] < 1 - LEVEL:
        return SHOWN + word
    return LEANS + word if row["p"] < 1 - LEVEL else NOT_SHOWN


def _row(base: Row, **values: Any) -> Row:
    """A row with all columns; what is not finite is null."""
    row = {name: {**base, **values}.get(name) for name in COLUMNS}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def in_words(rows: list[Row], titles: dict[str, str]) -> list[str]:
    """One sentence a comparison: what differs, from what to what; then which arms lower violations."""
    sentences, lower = [], {SHOWN: [], LEANS: []}
    compared = [row for row in rows if row["seed"] is None and row["against"]]
    for arm, against in dict.fromkeys((row["arm"], row["against"]) for row in compared):
        own = [row for row in compared if (row["arm"], row["against"]) == (arm, against)]
        shown = [row for row in own if row["verdict"] not in (SAME, NOT_SHOWN, NOT_JUDGED)]
        parts = [
            f"{titles.get(row['metric'], row['metric'])} {row['verdict']} "
            f"({row['value'] - row['difference']:.4g} to {row['value']:.4g})"
            for row in shown
        ]
        judged = [row["n"] for row in own if row["verdict"] != NOT_JUDGED]
        nothing = f"{NOT_SHOWN} with {min(judged)} seeds" if judged else f"{NOT_JUDGED}, too few seeds"
        sentences.append(f"{arm} against {against}: " + ("; ".join(parts) or nothing) + ".")
        for row in own:
            if row["metric"] == "any_violation_rate":
                for certainty in (SHOWN, LEANS):
                    if row["verdict"] == certainty + "better":
                        lower[certainty].append(f"{arm} (against {against})")
    sure = "Violations are lower, all comparisons counted: "
    perhaps = "Perhaps lower (not after all comparisons are counted): "
    sentences.append(sure + (", ".join(lower[SHOWN]) or "none") + ".")
    sentences.append(perhaps + (", ".join(lower[LEANS]) or "none") + ".")
    return sentences
