"""What the report's figures show, with captions in plain words; figures.py draws them."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.data.visits import code_lists, patient_starts
from cohortloom.reporting import figures
from cohortloom.reporting.scorecard import REAL, Record

# column of history.csv -> title, axis label, caption
LOSSES = {
    "lm_loss": (
        "Language-model loss",
        "loss (nats a code)",
        "How surprised the model is by the next code of a visit, in nats: the lower, the better it predicts."
        " Validation patients (solid) were never trained on; when their line rises while training falls,"
        " the model has begun to memorize.",
    ),
    "age_loss_years2": (
        "Age loss",
        "squared error (years²)",
        "How far the model's own age head is off, squared. 25 years² is an error of 5 years.",
    ),
    "sex_loss": (
        "Sex loss",
        "cross-entropy (nats)",
        "How unsure the model's own sex head is: 0.69 is a coin toss, 0 is certain and right.",
    ),
}
VIOLATIONS = "category_per_100k_visits"
ATTACKS = {"membership_auc": "by distance", "likelihood_auc": "by the model"}
# category of resources/icd9_validity.csv -> in words
KINDS = {
    "newborn": "newborn",
    "pediatric": "child (0-17)",
    "maternity": "maternity (12-55)",
    "adult": "adult (15 and over)",
    "female": "women only",
    "male": "men only",
}
CLOUDS = {
    "synthetic": "Compare the cloud with the one of held-out real visits beside it: that is how wide chance"
    " alone makes it. Ticks at the bottom are codes that never occur.",
    "held-out real": "These are real patients that no model saw: no honest generator comes closer to the line"
    " at this size.",
}


def read_history(path: Path) -> list[dict[str, str]]:
    """Rows of a history.csv; columns step, tokens, split and one a loss, any others are left alone."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the run again") from None


def losses(models: list[Path]) -> list[dict[str, str]]:
    """One figure a loss, all runs in it."""
    histories = {folder.name: read_history(folder / "history.csv") for folder in models}
    made = []
    for column, (title, ylabel, caption) in LOSSES.items():
        curves = {
            (run, split): points
            for run, rows in histories.items()
            for split in ("train", "val")
            if len((points := _points(rows, split, column))[0])
        }
        if curves:
            alt = f"{title} over training for the runs {', '.join(dict.fromkeys(r for r, _ in curves))}"
            made.append(_figure(title, figures.loss_curve(curves, ylabel), alt, caption))
    return made


def _points(rows: list[dict[str, str]], split: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss of a split's rows that hold a number, both [n_points]."""
    found = [(row["tokens"], row[column]) for row in rows if row.get("split") == split and row.get(column)]
    tokens, loss = np.array(found, float).reshape(-1, 2).T
    return tokens[np.isfinite(loss)], loss[np.isfinite(loss)]


def synthetic(
    made: pa.Table, real: pa.Table, training: pa.Table, methods: dict[str, pa.Table], main_id: str
) -> list[dict[str, str]]:
    """Prevalence (two panels), codes a visit and, where patients come more than once, visits and gaps."""
    known, scored, held = code_shares(training), code_shares(made), code_shares(real)
    codes = sorted(known)
    reference = np.array([known[code] for code in codes])
    floor = 1 / max(1, min(made.num_rows, real.num_rows))
    found = []
    for name, shares, color, n in (
        ("synthetic", scored, figures.SYNTHETIC, made.num_rows),
        ("held-out real", held, "#0072B2", real.num_rows),
    ):
        values = np.array([shares.get(code, 0.0) for code in codes])
        found.append(
            _figure(
                f"How common each diagnosis is: {name} against training",
                figures.prevalence(reference, values, floor, f"share of {name} visits with the code", color),
                f"Scatter of the share of {name} visits with each code over its share of training visits",
                f"Each dot is one diagnosis code; on the line it is as common among the {n:,} {name} visits"
                " as in training. Both axes are logarithmic. " + CLOUDS[name],
            )
        )
    real_name, made_name = "real, held out", f"synthetic ({main_id})"
    found.append(
        _figure(
            "Diagnoses in a visit",
            figures.histogram(
                {real_name: lengths(real), made_name: lengths(made)}
                | {name: lengths(table) for name, table in methods.items() if name != "copy"},
                "diagnosis codes in a visit",
                real_name,
                made_name,
            ),
            "Share of visits by number of diagnosis codes, real, synthetic and naive methods",
            "Grey bars are real visits; a good generator's line follows their tops. The last point holds all"
            " longer visits.",
        )
    )
    if max(visits_each(real).max(initial=1), visits_each(made).max(initial=1)) > 1:
        found.append(
            _figure(
                "Visits of a patient",
                figures.histogram(
                    {real_name: visits_each(real), made_name: visits_each(made)},
                    "visits of a patient",
                    real_name,
                    made_name,
                ),
                "Share of patients by number of visits, real and synthetic",
                "How often patients come back. Grey bars are real patients, the line synthetic ones.",
            )
        )
    return found


def code_shares(table: pa.Table) -> dict[str, float]:
    """Share of visits that hold each code."""
    counted = pc.value_counts(code_lists(table)[0])
    pairs = zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
    return {code: count / table.num_rows for code, count in pairs}


def lengths(table: pa.Table) -> np.ndarray:
    """Codes of each visit, [n_visits]."""
    return np.diff(code_lists(table)[1])


def visits_each(table: pa.Table) -> np.ndarray:
    """Visits of each patient, [n_patients]."""
    starts = patient_starts(table)
    return np.diff(np.r_[starts, table.num_rows])


def violations(records: list[Record], main_id: str) -> list[dict[str, str]]:
    """Codes that break a limit, by kind of limit: held-out real, the main run and the naive methods."""
    found = {(r["run"], r["subset"]): r for r in records if r["metric"] == VIOLATIONS}
    kinds = [kind for kind in KINDS if any(subset == kind for _, subset in found)]
    names = {
        REAL: "real, held out",
        main_id: f"synthetic ({main_id})",
        "prevalence": "prevalence (naive)",
        "markov": "markov (naive)",
    }
    runs = [run for run in names if any(name == run for name, _ in found)]
    if not kinds or main_id not in runs or REAL not in runs:
        return []

    def column(run: str, field: str) -> list[float]:
        # A set without any code of a kind cannot break its limit.
        return [float(found.get((run, kind), {}).get(field) or 0) for kind in kinds]

    picture = figures.bars(
        [KINDS[kind] for kind in kinds],
        {names[run]: np.array(column(run, "value")) for run in runs},
        "codes out of place for 100,000 visits",
        {names[run]: np.array([column(run, "ci_low"), column(run, "ci_high")]).T for run in runs},
    )
    return [
        _figure(
            "Diagnoses that do not fit",
            picture,
            "Bars of violations per 100,000 visits by kind of limit, for "
            + ", ".join(names[run] for run in runs),
            "How often a code stands with a patient whose age or sex it does not allow, by kind of code."
            " Thin lines are 95% intervals. Real records have such errors too, but few.",
        )
    ]


def leaks(records: list[Record], main_id: str) -> list[dict[str, str]]:
    """Attacks on the training patients: AUC and interval of the main run, real, copies and naive ones."""
    found = {(r["run"], r["metric"]): r for r in records if r["metric"] in ATTACKS and not r["subset"]}
    names = {
        main_id: f"synthetic ({main_id})",
        REAL: "real, held out",
        "copy": "copies of training",
        "prevalence": "prevalence (naive)",
        "markov": "markov (naive)",
    }
    rows = [
        (f"{ATTACKS[metric]}: {names[run]}", found[run, metric])
        for metric in ATTACKS
        for run in names
        if found.get((run, metric), {}).get("value") is not None
    ]
    if not rows:
        return []
    picture = figures.points(
        [label for label, _ in rows],
        np.array([[r["value"], r["ci_low"], r["ci_high"]] for _, r in rows], float),
        "probability of picking right",
        0.5,
        "guessing",
    )
    return [
        _figure(
            "How far training patients are given away",
            picture,
            "Points with 95% intervals: " + ", ".join(label for label, _ in rows),
            "One training patient and one who is not: how often an attacker picks the right one, from the"
            " released visits or from the model itself. On the dashed line nothing is given away.",
        )
    ]


def _figure(title: str, uri: str, alt: str, caption: str) -> dict[str, str]:
    return {"title": title, "uri": uri, "alt": alt, "caption": caption}
